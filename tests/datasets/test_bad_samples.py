"""Bad samples: their replacement, count and list, and when they end the run."""

import json
import multiprocessing
import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
from mmengine.registry import DATASETS, TRANSFORMS
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import mcbeit_mm  # noqa: F401  registers the transforms
from mcbeit_mm.datasets.bad_samples import BadSamples
from mcbeit_mm.datasets.images import BadImageError
from mcbeit_mm.datasets.seeded_data import SeededDataset
from mcbeit_mm.errors import SetupError


class Numbers(Dataset):
    """Sample i is i; those in `bad` raise."""

    def __init__(self, length, bad, error=BadImageError):
        self.length, self.bad, self.error = length, frozenset(bad), error

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.bad:
            raise self.error(f'number {index} is odd')
        return index

    def get_data_info(self, index):
        return dict(img_path=f'{index}.jpg')


def read(dataset, indices, epoch=0, **loading):
    """Read these samples through a DataLoader; the samples in order."""
    keys = [(index, (epoch, position)) for position, index in enumerate(indices)]
    # The parent holds CUDA-free threads only: fork is quick; spawn has its own test.
    return [int(x) for x in DataLoader(dataset, sampler=keys, batch_size=None, **loading)]


def seeded(length=2000, bad=(3, 50, 51), error=BadImageError, report=None, seed=0):
    return SeededDataset(Numbers(length, bad, error), seed, report)


def lines(report):
    return [json.loads(line) for line in report.read_text().splitlines()]


def test_candidates_depend_only_on_seed_and_index():
    first, again = BadSamples(1000, seed=1), BadSamples(1000, seed=1)
    for index in (7, 3, 7):
        order = list(zip(first.candidates(index), range(20), strict=False))
        assert order[0][0] == index
        assert order == list(zip(again.candidates(index), range(20), strict=False))
        assert len({candidate for candidate, _ in order}) == 20
    for other in (BadSamples(1000, seed=2).candidates(7), first.candidates(8)):
        assert [c for c, _ in zip(other, range(5), strict=False)][1:] != [
            c for c, _ in zip(first.candidates(7), range(5), strict=False)
        ][1:]


def test_candidates_are_spread_evenly():
    bad = BadSamples(50, seed=0)
    second = [list(zip(bad.candidates(i % 50), range(2), strict=False))[1][0] for i in range(50)]
    assert len(set(second)) > 25  # 32 expected of 50 independent draws


@pytest.mark.parametrize('length', [1, 2, 30])
def test_candidates_end(length):
    bad = BadSamples(length, seed=0)
    given = []
    with pytest.raises(BadImageError, match='neither sample 0 nor any of its replacements'):
        for candidate in bad.candidates(0):
            given.append(candidate)
    assert given[0] == 0 and len(given) == len(set(given)) <= min(length, 100)


def test_good_samples_are_left_alone(tmp_path):
    dataset = seeded(bad=(), report=tmp_path / 'bad.jsonl')
    assert read(dataset, range(100)) == list(range(100))
    assert dataset.bad_samples.count == 0 and dataset.bad_samples.seen == 100
    assert not (tmp_path / 'bad.jsonl').exists()


@pytest.mark.parametrize('workers', [1, 2])
def test_same_samples_and_list_for_any_number_of_workers(tmp_path, workers):
    runs = {}
    for number in (0, workers):
        report = tmp_path / f'{number}.jsonl'
        dataset = seeded(report=report)
        for epoch in range(2):
            runs[number, epoch] = read(dataset, range(100), epoch, num_workers=number)
        assert dataset.bad_samples.count == 3  # counted in the workers, seen here
        runs[number, 'list'] = sorted(lines(report), key=lambda line: line['index'])
    assert runs[0, 0] == runs[0, 1] == runs[workers, 0] == runs[workers, 1]
    assert runs[0, 'list'] == runs[workers, 'list']
    for line in runs[0, 'list']:
        assert line['path'] == f'{line["index"]}.jpg'
        assert line['reason'] == f'BadImageError: number {line["index"]} is odd'
        assert runs[0, 0][line['index']] == line['instead']
    assert [line['index'] for line in runs[0, 'list']] == [3, 50, 51]
    assert [x for i, x in enumerate(runs[0, 0]) if i not in (3, 50, 51)] == [
        i for i in range(100) if i not in (3, 50, 51)
    ]


def test_bad_replacements_are_replaced(tmp_path):
    probe = BadSamples(2000, seed=0)
    order = [c for c, _ in zip(probe.candidates(3), range(4), strict=False)]
    dataset = seeded(bad=order[:3], report=tmp_path / 'bad.jsonl')
    assert read(dataset, [3]) == [order[3]]
    assert [line['index'] for line in lines(tmp_path / 'bad.jsonl')] == order[:3]
    assert dataset.bad_samples.count == 3


def test_resumed_run_adds_nothing_known_to_the_list(tmp_path):
    report = tmp_path / 'bad.jsonl'
    read(seeded(report=report), range(60))
    before = report.read_text()
    dataset = seeded(bad=(3, 50, 70), report=report)
    read(dataset, range(60))
    assert report.read_text() == before
    assert dataset.bad_samples.count == 2 and dataset.bad_samples.entries() == []
    read(dataset, range(60, 80))
    assert [e['index'] for e in dataset.bad_samples.entries()] == [70]
    assert report.read_text().startswith(before)


def test_list_of_other_data_or_cut_off_hides_nothing(tmp_path):
    report = tmp_path / 'bad.jsonl'
    report.write_text('{"index": 3, "path": "other.jpg", "reason": "x"}\n{"index": 50, "pa')
    read(seeded(report=report), range(60))
    assert '"index": 3, "path": "3.jpg"' in report.read_text()
    assert '"index": 50, "path": "50.jpg"' in report.read_text()


def test_works_without_a_list_and_with_a_full_disk(tmp_path):
    dataset = seeded()
    assert len(read(dataset, range(60))) == 60 and dataset.bad_samples.count == 3
    (tmp_path / 'file').touch()
    dataset = seeded(report=tmp_path / 'file/bad.jsonl')  # a file where a folder must be
    with pytest.warns(UserWarning, match='3.jpg'):
        assert len(read(dataset, range(60))) == 60
    assert dataset.bad_samples.count == 3


def test_limit_is_a_share_of_what_was_seen():
    bad = BadSamples(100_000, seed=0, max_share=0.01)
    assert bad.limit == 10
    bad._seen[:5000] = 1
    assert bad.limit == 50
    bad.max_share = 0.1
    assert bad.limit == 500
    assert BadSamples(300, seed=0, max_share=0.01).limit == 3  # never above the share of all
    assert BadSamples(300, seed=0, max_share=0).limit == 0
    with pytest.raises(ValueError, match='max_share'):
        BadSamples(300, seed=0, max_share=1.5)


def test_too_many_end_the_run(tmp_path):
    dataset = seeded(bad=range(0, 2000, 20), error=OSError, report=tmp_path / 'bad.jsonl')
    with pytest.raises(SetupError) as error:
        read(dataset, range(2000))
    for part in ('11 of the', 'samples seen so far (of 2000)', '0.01', 'bad.jsonl', 'OSError'):
        assert part in str(error.value)
    assert dataset.bad_samples.count == 11 and dataset.bad_samples.seen < 400


@pytest.mark.parametrize('workers', [0, 1])  # torch takes 5 s to end one after an error
def test_a_bug_in_a_transform_ends_the_run_with_its_traceback(tmp_path, workers):
    dataset = seeded(bad=range(2000), error=ZeroDivisionError, report=tmp_path / 'bad.jsonl')
    with pytest.raises(SetupError) as error:
        read(dataset, range(2000), num_workers=workers)
    assert 'ZeroDivisionError: number' in str(error.value)
    assert "raise self.error(f'number {index} is odd')" in str(error.value)
    assert dataset.bad_samples.seen < 30
    assert 'in __getitem__' in lines(tmp_path / 'bad.jsonl')[0]['traceback']


@pytest.mark.parametrize('error', [NameError, AttributeError, TypeError, NotImplementedError])
def test_programming_errors_are_raised_at_once(tmp_path, error):
    dataset = seeded(bad=[5], error=error, report=tmp_path / 'bad.jsonl')
    with pytest.raises(error, match='number 5'):
        read(dataset, range(20))
    assert not (tmp_path / 'bad.jsonl').exists() and dataset.bad_samples.count == 0


def test_counts_are_shared_with_spawned_processes(tmp_path):
    bad = BadSamples(2000, seed=0, report=tmp_path / 'bad.jsonl')
    # What spawn does: tensors travel as handles of shared memory.
    copy = pickle.loads(ForkingPickler.dumps(bad))
    copy.note(4, '4.jpg', BadImageError('broken'))
    assert bad.count == 1 and bad.entries()[0]['reason'] == 'BadImageError: broken'


def test_pickles():
    bad = pickle.loads(pickle.dumps(BadSamples(20, seed=3, max_share=0.5)))
    assert (bad.length, bad.seed, bad.max_share, bad.count) == (20, 3, 0.5, 0)


def _append(arguments):
    report, start = arguments
    bad = BadSamples(10_000, seed=0, report=report, max_share=1)
    bad._seen[:] = 1
    for index in range(start, 4000, 4):
        bad.note(index, 'x' * 300, BadImageError('y' * 300))


def test_lines_of_several_processes_do_not_mix(tmp_path):
    report = tmp_path / 'bad.jsonl'
    with multiprocessing.get_context('fork').Pool(4) as pool:
        pool.map(_append, [(report, start) for start in range(4)])
    assert sorted(line['index'] for line in lines(report)) == list(range(4000))


@pytest.fixture
def folder(tmp_path):
    """Two classes of 60 images each; three of them damaged, one of them only lacks an end."""
    rng = np.random.default_rng(0)
    for index in range(120):
        name = tmp_path / 'photos' / f'class{index % 2}' / f'{index:03d}.jpg'
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(name)
    names = sorted((tmp_path / 'photos').rglob('*.jpg'))
    names[7].write_bytes(b'')
    names[30].write_text('Not found')
    names[99].write_bytes(names[99].read_bytes()[:-300])
    return tmp_path / 'photos', [str(names[i]) for i in (7, 30, 99)]


def test_real_folder_through_mmpretrain(folder, tmp_path):
    import mmpretrain.datasets

    root, damaged = folder
    pipeline = [
        dict(type='LoadCheckedImage'),
        dict(type='TwoViewRandomResizedCrop', size=32, second_size=16),
        dict(type='RandomPatchMask', grid_size=2),
    ]
    assert TRANSFORMS.get('LoadCheckedImage')
    inner = mmpretrain.datasets.CustomDataset(data_root=str(root), pipeline=pipeline)
    assert DATASETS.get('SeededDataset') is SeededDataset
    runs = []
    for workers in (0, 2):
        dataset = SeededDataset(inner, 0, tmp_path / f'{workers}.jsonl')
        dataset.bad_samples.max_share = 0.05
        keys = [(index, (0, index)) for index in range(len(dataset))]
        loader = DataLoader(dataset, sampler=keys, batch_size=None, num_workers=workers)
        runs.append([(x['img_path'], x['img'][0], x['mask']) for x in loader])
        listed = lines(tmp_path / f'{workers}.jsonl')
        assert sorted(line['path'] for line in listed) == sorted(damaged)
        assert dataset.bad_samples.count == 3
        read_paths = [path for path, _, _ in runs[-1]]
        assert len(read_paths) == 120 and not set(read_paths) & set(damaged)
        for line in listed:
            assert read_paths[line['index']] == inner.get_data_info(line['instead'])['img_path']
    for one, other in zip(*runs, strict=True):
        assert one[0] == other[0]
        assert np.array_equal(one[1], other[1]) and np.array_equal(one[2], other[2])


def test_validation_data_is_not_replaced(folder):
    import mmpretrain.datasets

    root, damaged = folder
    dataset = mmpretrain.datasets.CustomDataset(
        data_root=str(root), pipeline=[dict(type='LoadCheckedImage')], test_mode=True
    )
    with pytest.raises(BadImageError, match=damaged[0]):
        dataset[7]
