"""The checkpoint that a run resumes from, whether it fits, and the position in it."""

import os
import random
import shutil
import struct
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mcbeit_mm.engine import resume
from mcbeit_mm.engine.experiment import run_facts
from mcbeit_mm.fileio.pins import sha256_of

SAVED = 1.7e9  # seconds since 1970, before the files of this test


def save(file, iteration=None, epoch=0, minute=None, run=None, optimizer=True):
    """Write a checkpoint as SafeCheckpointHook does; `minute` is the time of saving."""
    meta = dict(epoch=epoch, iter=iteration) if iteration is not None else {}
    if minute is not None:
        meta['saved_at'] = SAVED + 60.0 * minute
    if run:
        meta['run'] = run
    content = dict(meta=meta, state_dict=dict(weight=torch.randn(64, 64)))
    if optimizer:
        content['optimizer'] = dict(state={})
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file)
    return file


def cut(file, share=0.6):
    """Truncate, as an interrupted copy does."""
    os.truncate(file, int(file.stat().st_size * share))
    return file


def flip(file):
    """Change one byte of the weights; the file still opens."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return file


@pytest.fixture
def work(tmp_path):
    """A work dir with three checkpoints in the middle of a run."""
    folder = tmp_path / 'work'
    for epoch in (1, 2, 3):
        save(folder / f'epoch_{epoch}.pth', 100 * epoch, epoch, minute=epoch)
    (folder / 'last_checkpoint').write_text(f'{folder}/epoch_3.pth')
    return folder


def test_the_last_saved_is_found_whatever_the_modification_times(work, capsys):
    for age, name in enumerate(('epoch_3.pth', 'epoch_2.pth', 'epoch_1.pth')):
        os.utime(work / name, (age, age))
    assert resume.find_checkpoint(work) == work / 'epoch_3.pth'
    assert resume.find_checkpoint(work / 'epoch_1.pth') == work / 'epoch_1.pth'
    assert capsys.readouterr().err == ''


def test_a_run_killed_before_last_checkpoint_was_written(work):
    (work / 'last_checkpoint').write_text(str(work / 'epoch_2.pth'))
    assert resume.find_checkpoint(work) == work / 'epoch_3.pth'
    (work / 'last_checkpoint').write_bytes(b'\xff\x00')
    assert resume.find_checkpoint(work) == work / 'epoch_3.pth'
    (work / 'last_checkpoint').unlink()
    assert resume.find_checkpoint(str(work)) == work / 'epoch_3.pth'


def test_moved_and_copied_folders(work, tmp_path):
    moved = tmp_path / 'moved'
    shutil.copytree(work, moved, copy_function=shutil.copyfile)  # new modification times
    shutil.rmtree(work)
    assert resume.find_checkpoint(moved) == moved / 'epoch_3.pth'


def test_interrupted_runs_continue_within_an_epoch(work):
    middle = save(work / 'interrupted_iter_337.pth', 337, 3, minute=4)
    assert resume.find_checkpoint(work) == middle


def test_a_run_that_went_back_continues_there(work):
    back = save(work / 'iter_150.pth', 150, 1, minute=9)
    assert resume.find_checkpoint(work) == back


@pytest.mark.parametrize('harm', [cut, flip])
def test_damaged_files_are_skipped_with_a_warning_and_kept(work, harm, capsys):
    bad = harm(work / 'epoch_3.pth')
    assert resume.find_checkpoint(work) == work / 'epoch_2.pth'
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and bad.exists()
    assert said[0].startswith(f'warning: skipping damaged checkpoint {bad}: ')
    assert said[0].endswith(resume.damage(bad))


def test_damage_to_the_time_of_saving_does_not_hide_a_checkpoint(work, capsys):
    bad = work / 'epoch_3.pth'
    content, (new, old) = bad.read_bytes(), (struct.pack('>d', SAVED + 60 * i) for i in (3, 1))
    assert content.count(new) == 1
    bad.write_bytes(content.replace(new, old))
    assert resume.find_checkpoint(work) == work / 'epoch_2.pth'
    assert f'skipping damaged checkpoint {bad}' in capsys.readouterr().err


def test_damaged_files_are_never_resumed(work, capsys):
    """A flipped bit, a truncated file or overwritten bytes: skipped, or without effect."""
    file, rng = work / 'epoch_3.pth', random.Random(0)
    good, whole = file.read_bytes(), torch.load(file, weights_only=True)
    skipped = 0
    for attempt in range(300):
        content, place = bytearray(good), rng.randrange(len(good) - 64)
        if attempt % 3 == 0:
            content[place] ^= 1 << rng.randrange(8)
        elif attempt % 3 == 1:
            content = content[:place]
        else:
            content[place : place + 64] = rng.randbytes(64)
        file.write_bytes(content)
        found = resume.find_checkpoint(work)
        if found == work / 'epoch_2.pth':
            assert f'skipping damaged checkpoint {file}' in capsys.readouterr().err
            skipped += 1
        else:
            loaded = torch.load(found, weights_only=True)
            assert loaded['meta'] == whole['meta'] and loaded['optimizer'] == whole['optimizer']
            assert loaded['state_dict']['weight'].equal(whole['state_dict']['weight'])
    assert skipped > 250


def test_the_other_processes_are_silent(work, capsys, monkeypatch):
    cut(work / 'epoch_3.pth')
    monkeypatch.setenv('RANK', '1')
    assert resume.find_checkpoint(work) == work / 'epoch_2.pth'
    assert capsys.readouterr().err == ''


def test_a_damaged_file_given_by_name_is_refused(work, capsys):
    bad = flip(work / 'epoch_3.pth')
    with pytest.raises(ValueError) as error:
        resume.find_checkpoint(bad)
    assert str(error.value) == (
        f'checkpoint {bad} is damaged ({resume.damage(bad)}): pass the folder {work} to use its '
        'newest good one'
    )
    assert capsys.readouterr().err == ''


def test_no_good_one_left(work, capsys):
    for epoch in (1, 2, 3):
        cut(work / f'epoch_{epoch}.pth')
    with pytest.raises(ValueError) as error:
        resume.checkpoint_to_resume(str(work), 'auto')  # and not: starting from scratch
    assert str(error.value) == (
        f'all checkpoints in {work} are damaged: epoch_3.pth, epoch_2.pth, epoch_1.pth. Copy a '
        'good one there, or move them away to start from scratch'
    )
    said = capsys.readouterr().err
    for epoch in (1, 2, 3):
        file = work / f'epoch_{epoch}.pth'
        assert f'skipping damaged checkpoint {file}: {resume.damage(file)}' in said


def test_best_checkpoints_only_if_there_is_nothing_else(work, capsys):
    best = save(work / 'best_accuracy_epoch_9.pth', 900, 9, minute=9, optimizer=False)
    assert resume.find_checkpoint(work) == work / 'epoch_3.pth'
    assert capsys.readouterr().err == ''
    for epoch in (1, 2, 3):
        (work / f'epoch_{epoch}.pth').unlink()
    assert resume.find_checkpoint(work) == best
    with pytest.raises(ValueError, match='no training state'):
        resume.check_resume(Config(CONFIG), best, 1)


def test_published_copies_do_not_come_before_their_originals(work):
    original = torch.load(work / 'epoch_3.pth', weights_only=True)
    del original['optimizer']
    torch.save(original, work / 'epoch_3-0a1b2c3d.pth')
    (work / 'last_checkpoint').unlink()
    assert resume.find_checkpoint(work) == work / 'epoch_3.pth'


def test_checkpoints_without_a_time_of_saving(tmp_path):
    """From other hooks: the modification time decides."""
    for date, name in enumerate(('b', 'a', 'c')):
        os.utime(save(tmp_path / f'{name}.pth'), (date, date))
    assert resume.find_checkpoint(tmp_path) == tmp_path / 'c.pth'


def test_files_that_a_running_training_deletes(work, monkeypatch):
    read = resume.read_checkpoint

    def delete_and_read(path):
        (work / 'epoch_1.pth').unlink(missing_ok=True)
        return read(path)

    monkeypatch.setattr(resume, 'read_checkpoint', delete_and_read)
    assert resume.find_checkpoint(work) == work / 'epoch_3.pth'


def test_pinned_files(work):
    file = work / 'epoch_2.pth'
    pinned = f'{file}#sha256={sha256_of(file)}'
    assert resume.checkpoint_to_resume('x', pinned) == str(file)
    flip(file)
    with pytest.raises(ValueError, match='has the SHA-256'):
        resume.find_checkpoint(pinned)
    with pytest.raises(ValueError, match='is a folder'):
        resume.find_checkpoint(f'{work}#sha256={"0" * 64}')


def test_auto_folder_and_file(work, tmp_path, capsys):
    empty = tmp_path / 'empty'
    assert resume.checkpoint_to_resume(str(empty), 'auto') is None
    empty.mkdir()
    assert resume.checkpoint_to_resume(str(empty), 'auto') is None
    message = f'no checkpoint in {empty}: starting from scratch\n'
    assert capsys.readouterr().err == 2 * message
    assert resume.checkpoint_to_resume(str(work), 'auto') == str(work / 'epoch_3.pth')
    assert resume.checkpoint_to_resume('x', str(work)) == str(work / 'epoch_3.pth')
    assert resume.checkpoint_to_resume('x', str(work / 'epoch_1.pth')) == str(work / 'epoch_1.pth')
    with pytest.raises(FileNotFoundError, match='no checkpoint .*: pass a .pth file or the work'):
        resume.checkpoint_to_resume('x', str(tmp_path / 'none.pth'))


@pytest.mark.skipif(not os.path.exists('/proc/self/maps'), reason='of Linux')
def test_meta_is_read_without_the_weights(work, monkeypatch):
    kept = []
    load = torch.load
    monkeypatch.setattr(torch, 'load', lambda *a, **kw: kept.append(load(*a, **kw)) or kept[-1])
    file = work / 'epoch_2.pth'
    assert resume._read_mapped(file)['meta']['iter'] == 200
    weight = kept[0]['state_dict']['weight']
    with open('/proc/self/maps') as maps:  # the weights are mapped, not read
        ends = [line.split()[0].split('-') for line in maps if str(file) in line]
    assert any(int(start, 16) <= weight.data_ptr() < int(end, 16) for start, end in ends)


CONFIG = dict(
    model=dict(type='M', width=4),
    train_dataloader=dict(batch_size=8),
    train_cfg=dict(max_epochs=3),
)


def test_a_resume_is_checked_before_anything_is_built(tmp_path, capsys):
    cfg = Config(CONFIG)
    file = save(tmp_path / 'epoch_1.pth', 10, 1, run=run_facts(cfg, 2))
    resume.check_resume(cfg, file, 2)
    assert capsys.readouterr().err == ''
    cfg.model.width = 5
    with pytest.raises(ValueError, match=r'model.width: 4 -> 5\. .* --allow-changes'):
        resume.check_resume(cfg, file, 2)
    resume.check_resume(cfg, str(file), 2, allow=True)
    assert 'resuming with different settings' in capsys.readouterr().err


@pytest.mark.parametrize(
    'content', [dict(state_dict={}), dict(meta=dict(iter=1)), dict(optimizer={})]
)
def test_bare_weights_are_not_resumed(content, tmp_path):
    torch.save(content, tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match='holds weights but no training state.*load_from'):
        resume.check_resume(Config(CONFIG), tmp_path / 'weights.pth', 1)


def rescaled_position(meta, old_batch, new_batch, lengths=(None, None)):
    """Epoch and iteration of meta after a change of the batch size."""
    facts = [
        run_facts(Config(dict(train_dataloader=dict(batch_size=batch))), 1, length)
        for batch, length in zip((old_batch, new_batch), lengths, strict=True)
    ]
    meta = dict(meta, run=facts[0])
    resume.move_position(meta, facts[1])
    return meta['epoch'], meta['iter']


@pytest.mark.parametrize('num_images', [100, 1000, 1001])
@pytest.mark.parametrize('old_batch', [8, 30, 32])
@pytest.mark.parametrize('new_batch', [4, 12, 32, 64])
def test_rescaled_position_repeats_less_than_a_batch_and_skips_none(
    num_images, old_batch, new_batch
):
    old_length, new_length = num_images // old_batch, num_images // new_batch
    for iteration in range(3 * old_length):
        epoch, done = divmod(iteration, old_length)
        meta = dict(epoch=epoch, iter=iteration)
        lengths = (old_length, new_length)
        place = rescaled_position(meta, old_batch, new_batch, lengths)
        assert place[0] == epoch
        seen = (place[1] - epoch * new_length) * new_batch
        shown = min(done * old_batch, new_length * new_batch)
        assert shown - new_batch < seen <= shown
        if old_batch == new_batch:
            assert place == (epoch, iteration)


def test_rescaled_position_at_the_end_of_an_epoch():
    assert rescaled_position(dict(epoch=2, iter=20), 16, 8, (10, 20)) == (2, 40)
    # 7 images: the smaller last batch counts in full, then it is dropped.
    assert rescaled_position(dict(epoch=1, iter=4), 4, 2, (2, 3)) == (1, 6)
    # After the last iteration of an epoch that is not counted yet (interval in iterations).
    assert rescaled_position(dict(epoch=1, iter=20), 16, 8, (10, 21)) == (1, 41)
    assert rescaled_position(dict(epoch=1, iter=20), 16, 8, (10, 20)) == (1, 40)


def test_rescaled_position_of_a_loop_over_iterations():
    assert rescaled_position(dict(epoch=0, iter=101), 16, 32) == (0, 50)
    assert rescaled_position(dict(epoch=0, iter=101), 16, 8) == (0, 202)


@pytest.mark.parametrize(
    'lengths, place', [((10, 20), (1, 30)), ((None, None), (1, 30)), ((10, 21), (1, 31))]
)
def test_position_of_a_loaded_checkpoint(lengths, place):
    facts = [
        run_facts(Config(CONFIG), n, length) for n, length in zip((2, 1), lengths, strict=True)
    ]
    meta = dict(epoch=1, iter=15, run=facts[0])
    resume.move_position(meta, facts[0])
    assert (meta['epoch'], meta['iter']) == (1, 15)
    resume.move_position(meta, facts[1])
    assert (meta['epoch'], meta['iter']) == place
    older = dict(epoch=1, iter=15)
    resume.move_position(older, facts[1])
    assert older == dict(epoch=1, iter=15)


class Line(torch.nn.Linear):
    """A model with the train_step that MMEngine calls."""

    def __init__(self):
        super().__init__(1, 1)

    def train_step(self, data, optim_wrapper):
        optim_wrapper.update_params(self(torch.ones(1, 1)).sum())
        return dict(loss=torch.zeros(()))


def runner_of(tmp_path, lr, milestone, resumed=None):
    return Runner(
        Line(),
        str(tmp_path),
        train_dataloader=dict(dataset=[1, 2], batch_size=1, sampler=dict(type='DefaultSampler')),
        train_cfg=dict(by_epoch=True, max_epochs=2 if resumed else 1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=lr)),
        param_scheduler=dict(type='MultiStepLR', milestones=[milestone]),
        default_hooks=dict(logger=None),
        resume=bool(resumed),
        load_from=resumed,
        experiment_name=f'{tmp_path.name}{lr}',
    )


def test_mmengine_takes_rates_and_schedules_from_the_checkpoint(tmp_path):
    """As docs/reliability.md says about --allow-changes."""
    runner_of(tmp_path, 0.1, milestone=9).train()
    runner = runner_of(tmp_path, 0.5, milestone=2, resumed=str(tmp_path / 'epoch_1.pth'))
    runner.train()
    assert runner.optim_wrapper.get_lr()['lr'] == [0.1]


class Diary(Line):
    """A model that records its images."""

    def train_step(self, data, optim_wrapper):
        self.seen = [*getattr(self, 'seen', []), *data]
        return super().train_step(data, optim_wrapper)


class Mover(Hook):
    def before_save_checkpoint(self, runner, checkpoint):
        checkpoint['meta']['run'] = run_facts(runner.cfg, 1, len(runner.train_dataloader))

    def after_load_checkpoint(self, runner, checkpoint):
        facts = run_facts(runner.cfg, 1, len(runner.train_dataloader))
        resume.move_position(checkpoint['meta'], facts)


def seen_by(tmp_path, batch_size, resumed=None):
    cfg = dict(
        train_dataloader=dict(
            dataset=list(range(7)), batch_size=batch_size, sampler=dict(type='DefaultSampler')
        ),
        train_cfg=dict(type='ResumableEpochLoop', max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(
            logger=None, checkpoint=dict(type='CheckpointHook', interval=3, by_epoch=False)
        ),
        randomness=dict(seed=0),
    )
    runner = Runner(
        Diary(),
        str(tmp_path),
        **cfg,
        cfg=Config(cfg),
        custom_hooks=[Mover()],
        resume=bool(resumed),
        load_from=resumed,
        experiment_name=f'{tmp_path.name}{batch_size}{bool(resumed)}',
    )
    return runner.train().seen


def test_another_batch_size_resumes_at_the_same_image(tmp_path):
    """7 images in batches of 4: iteration 3 is after the first batch of the second epoch."""
    whole = seen_by(tmp_path / 'old', 4)
    assert sorted(whole[:7]) == sorted(whole[7:]) == list(range(7))
    for batch_size, again in ((2, 0), (3, 1)):
        copied = shutil.copytree(tmp_path / 'old', tmp_path / f'with{batch_size}')
        seen = seen_by(copied, batch_size, resumed=str(copied / 'iter_3.pth'))
        assert seen == whole[7 + 4 - again :]


def test_a_resumed_run_needs_no_initial_weights():
    runner = SimpleNamespace(model=SimpleNamespace(backbone=SimpleNamespace(init_cfg='x')))
    resume.skip_initial_weights(runner)
    assert runner.model.backbone.init_cfg is None


def test_checkpoints_of_another_folder(tmp_path):
    """`out_dir` of the checkpoint hook: the work dir has only last_checkpoint."""
    work, out = tmp_path / 'work', tmp_path / 'out'
    work.mkdir(), out.mkdir()
    torch.save(dict(meta=dict(iter=3, epoch=0), optimizer={}, state_dict={}), out / 'iter_3.pth')
    (work / 'last_checkpoint').write_text(str(out / 'iter_3.pth'))
    assert resume.find_checkpoint(work) == out / 'iter_3.pth'
    (out / 'iter_3.pth').unlink()
    with pytest.raises(ValueError, match='names a checkpoint in .*out, which has none'):
        resume.checkpoint_to_resume(str(work), 'auto')
