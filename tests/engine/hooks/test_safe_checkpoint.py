"""Checkpoints of runs that are interrupted, fill the disk, validate or average weights."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from mmengine.hooks import EMAHook, Hook
from small_runs import same, small_run, weights

from mcbeit_mm.errors import SetupError
from mcbeit_mm.fileio.integrity import damage
from mcbeit_mm.weights.mmengine_loading import load_from_local

HOOK = dict(type='SafeCheckpointHook', interval=1)
BY_ITER = HOOK | dict(by_epoch=False)


def saved(folder):
    return sorted(path.name for path in folder.glob('*.pth'))


def last(folder):
    return Path((folder / 'last_checkpoint').read_text()).name


class SaveNow(Hook):
    """Saves once at the given place and ends the run."""

    priority = 'LOWEST'

    def __init__(self, at):
        self.at = at

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.at:
            hook = next(h for h in runner.hooks if type(h).__name__ == 'SafeCheckpointHook')
            hook.save_now(runner)
            raise SystemExit(75)


def resumed(folder, hook, name=None, **kwargs):
    file = folder / (name or last(folder))
    runner = small_run(folder, hook, resume=True, load_from=str(file), **kwargs)
    runner.train()
    return runner


def test_files_and_facts(tmp_path):
    small_run(tmp_path, HOOK | dict(max_keep_ckpts=2), epochs=4).train()
    assert saved(tmp_path) == ['epoch_3.pth', 'epoch_4.pth'] and last(tmp_path) == 'epoch_4.pth'
    assert damage(tmp_path / 'epoch_4.pth') is None
    checkpoint = load_from_local(str(tmp_path / 'epoch_4.pth'))
    assert checkpoint['message_hub']['runtime_info']['keep_ckpt_ids'] == [3, 4]
    run = checkpoint['meta']['run']
    assert (run['world_size'], run['epoch_length']) == (1, 6)
    assert run['settings']['train_cfg']['max_epochs'] == 4
    assert not list(tmp_path.glob('.*.tmp-*'))


def test_iterations_within_epochs(tmp_path):
    small_run(tmp_path, BY_ITER | dict(interval=4), epochs=2).train()
    assert saved(tmp_path) == ['iter_12.pth', 'iter_4.pth', 'iter_8.pth']
    assert load_from_local(str(tmp_path / 'iter_8.pth'))['meta']['epoch'] == 1


def test_there_is_always_a_good_checkpoint(tmp_path, monkeypatch):
    """Whenever the folder changes, the newest complete file is kept."""
    replace, remove = os.replace, os.remove
    events = []

    def good():
        return [name for name in saved(tmp_path) if damage(tmp_path / name) is None]

    def watched(do, name):
        def act(*args):
            do(*args)
            events.append((name, Path(args[-1]).name, good()))

        return act

    monkeypatch.setattr(os, 'replace', watched(replace, 'write'))
    monkeypatch.setattr(os, 'remove', watched(remove, 'remove'))
    small_run(tmp_path, BY_ITER | dict(max_keep_ckpts=1), iters=3).train()
    assert events == [
        ('write', 'iter_1.pth', ['iter_1.pth']),
        ('write', 'last_checkpoint', ['iter_1.pth']),
        ('write', 'iter_2.pth', ['iter_1.pth', 'iter_2.pth']),
        ('write', 'last_checkpoint', ['iter_1.pth', 'iter_2.pth']),
        ('remove', 'iter_1.pth', ['iter_2.pth']),
        ('write', 'iter_3.pth', ['iter_2.pth', 'iter_3.pth']),
        ('write', 'last_checkpoint', ['iter_2.pth', 'iter_3.pth']),
        ('remove', 'iter_2.pth', ['iter_3.pth']),
    ]


@pytest.mark.parametrize('when', ['epoch_2.pth', 'last_checkpoint'])
def test_killed_before_a_rename(tmp_path, when):
    """Good checkpoints stay good; the next start cleans up and resumes."""
    pid = os.fork()
    if pid == 0:
        replace = os.replace
        written = []

        def die(source, target):
            written.append(Path(target).name)
            if written[-1] == when and 'epoch_2.pth' in written:
                os._exit(9)
            replace(source, target)

        os.replace = die
        try:
            small_run(tmp_path, HOOK | dict(max_keep_ckpts=1), epochs=3).train()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert last(tmp_path) == 'epoch_1.pth' and damage(tmp_path / 'epoch_1.pth') is None
    assert len(list(tmp_path.glob('.*.tmp-*'))) == 1
    runner = resumed(tmp_path, HOOK | dict(max_keep_ckpts=1), epochs=3)
    assert saved(tmp_path) == ['epoch_3.pth'] and not list(tmp_path.glob('.*.tmp-*'))
    whole = small_run(tmp_path / 'whole', HOOK, epochs=3)
    whole.train()
    assert same(weights(runner), weights(whole))


def test_a_full_disk(tmp_path):
    """On a real file system with room for two and a half checkpoints."""
    pages = -(-file_size(tmp_path / 'probe') // 4096)
    size = 4096 * (5 * pages // 2)
    place = tmp_path / 'disk'
    place.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(place)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip('needs the right to mount')
    try:
        out = place / 'run'
        message = rf'cannot write {out}/epoch_3.pth: No space left .* bytes needed, .* free'
        hook = HOOK | dict(out_dir=str(place))
        with pytest.raises(SetupError, match=message) as caught:
            small_run(tmp_path / 'run', hook, epochs=4).train()
        assert f'Last good checkpoint: {out}/epoch_2.pth. Free space' in str(caught.value)
        assert sorted(p.name for p in out.iterdir()) == ['epoch_1.pth', 'epoch_2.pth']
        assert damage(out / 'epoch_2.pth') is None
        (out / 'epoch_1.pth').unlink()
        runner = small_run(
            tmp_path / 'run', hook, epochs=3, resume=True, load_from=str(out / 'epoch_2.pth')
        )
        runner.train()
        assert saved(out) == ['epoch_2.pth', 'epoch_3.pth']
    finally:
        subprocess.run(['umount', str(place)], check=True)


def file_size(folder) -> int:
    small_run(folder, HOOK, epochs=1).train()
    return (folder / 'epoch_1.pth').stat().st_size


def test_the_old_best_is_removed_after_the_new_one_is_saved(tmp_path, monkeypatch):
    removed = []
    remove = os.remove

    def watched(path):
        removed.append((Path(path).name, [n for n in saved(tmp_path) if n.startswith('best')]))
        remove(path)

    monkeypatch.setattr(os, 'remove', watched)
    hook = HOOK | dict(save_best='acc', max_keep_ckpts=1)
    small_run(tmp_path, hook, epochs=2, val=True).train()
    names = ['best_acc_epoch_1.pth', 'best_acc_epoch_2.pth']
    assert ('best_acc_epoch_1.pth', names) in removed
    final = load_from_local(str(tmp_path / 'epoch_2.pth'))['message_hub']['runtime_info']
    assert final['best_ckpt'] == str(tmp_path / 'best_acc_epoch_2.pth')
    assert saved(tmp_path) == ['best_acc_epoch_2.pth', 'epoch_2.pth']
    assert 'optimizer' not in load_from_local(str(tmp_path / 'best_acc_epoch_2.pth'))


@pytest.mark.parametrize('at', [3, 6, 8, 11])  # within the first epoch, at its end, later
def test_saving_at_once(tmp_path, at):
    whole = small_run(tmp_path / 'whole', HOOK, epochs=2, accumulate=2)
    whole.train()
    with pytest.raises(SystemExit):
        small_run(tmp_path, HOOK, epochs=2, accumulate=2, hooks=[SaveNow(at)]).train()
    assert last(tmp_path) == f'interrupted_iter_{at}.pth'
    runner = resumed(tmp_path, HOOK, epochs=2, accumulate=2)
    assert same(weights(runner), weights(whole))
    assert saved(tmp_path) == ['epoch_1.pth', 'epoch_2.pth']


def test_what_was_just_saved_is_not_saved_again(tmp_path):
    with pytest.raises(SystemExit):
        small_run(tmp_path, BY_ITER | dict(interval=3), iters=9, hooks=[SaveNow(3)]).train()
    assert saved(tmp_path) == ['iter_3.pth'] and last(tmp_path) == 'iter_3.pth'


@pytest.mark.parametrize('at', [7, 9])  # right after a validation, and later
@pytest.mark.parametrize('loop', [dict(epochs=2), dict(iters=12)])
def test_saving_between_validations_of_averaged_weights(tmp_path, at, loop):
    """EMAHook swaps the weights while validating; the file must hold them the right way round."""
    hook = HOOK | dict(by_epoch='epochs' in loop, interval=9, save_best='acc')

    def start(folder, *more, **kwargs):
        ema = dict(type=EMAHook, ema_type='ExponentialMovingAverage', momentum=0.1)
        return small_run(folder, hook, val=True, hooks=[ema, *more], **loop, **kwargs)

    whole = start(tmp_path / 'whole')
    whole.train()
    with pytest.raises(SystemExit):
        start(tmp_path, SaveNow(at)).train()
    rest = start(tmp_path, resume=True, load_from=str(tmp_path / last(tmp_path)))
    rest.train()
    assert same(weights(rest), weights(whole))
    final = f'{"epoch_2" if "epochs" in loop else "iter_12"}.pth'
    one, other = (torch.load(d / final, weights_only=False) for d in (tmp_path, tmp_path / 'whole'))
    assert same(one['ema_state_dict'], other['ema_state_dict'])
    assert same(one['state_dict'], other['state_dict'])
    assert not same(one['state_dict'], weights(rest))  # it holds the averaged weights


def test_addresses_are_refused(tmp_path):
    hook = HOOK | dict(out_dir='s3://bucket')
    with pytest.raises(SetupError, match='expected a local out_dir, got s3://bucket'):
        small_run(tmp_path, hook, epochs=1).train()
