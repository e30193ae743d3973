"""Signals end a run after the iteration: saved, status 75, no tracebacks from workers."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from mmengine.hooks import CheckpointHook
from mmengine.logging import MMLogger
from torch.utils.data import DataLoader, Dataset

from mcbeit_mm.engine.hooks import interrupt
from mcbeit_mm.engine.hooks.interrupt import InterruptHook
from mcbeit_mm.errors import SetupError

NAMES = ('SIGTERM', 'SIGINT', 'SIGUSR1')


class Saver(CheckpointHook):
    def __init__(self):
        self.saved = 0

    def save_now(self, runner):
        self.saved += 1


class Slow(Dataset):
    def __len__(self):
        return 10**6

    def __getitem__(self, i):
        time.sleep(0.01)
        return torch.zeros(2)


@pytest.fixture
def runner():
    """The parts of a Runner that the hook uses; restores the signal handlers."""
    handlers = {name: signal.getsignal(getattr(signal, name)) for name in NAMES}
    saver = Saver()
    loader = DataLoader(Slow(), num_workers=0)
    yield SimpleNamespace(
        hooks=[saver], saver=saver, logger=MMLogger.get_current_instance(),
        train_loop=SimpleNamespace(dataloader=loader), train_dataloader=loader,
        val_loop=SimpleNamespace(dataloader=loader),
    )  # fmt: skip
    for name, handler in handlers.items():
        signal.signal(getattr(signal, name), handler)


@pytest.mark.parametrize('name', NAMES)
def test_a_signal_saves_once_and_exits(runner, name, tmp_path, monkeypatch):
    monkeypatch.setenv('MCBEIT_INTERRUPTED', str(tmp_path / 'status'))
    hook = InterruptHook()
    hook.before_train(runner)
    hook.after_train_iter(runner, 0)
    assert runner.saver.saved == 0
    os.kill(os.getpid(), signal.Signals[name])
    with pytest.raises(SystemExit) as stop:
        hook.after_train_iter(runner, 1)
    assert stop.value.code == 75 and runner.saver.saved == 1
    assert (tmp_path / 'status').read_text() == '75\n'
    os.kill(os.getpid(), signal.SIGTERM)  # from the launcher; ignored now


def test_a_second_ctrl_c_interrupts_at_once(runner):
    hook = InterruptHook()
    hook.before_train(runner)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_signal_handlers_are_restored_after_training(runner):
    before = signal.getsignal(signal.SIGTERM)
    hook = InterruptHook()
    hook.before_train(runner)
    assert signal.getsignal(signal.SIGTERM) == hook._note
    hook.after_train(runner)
    assert signal.getsignal(signal.SIGTERM) is before


def test_settings_that_cannot_work(runner):
    runner.hooks = [CheckpointHook()]
    with pytest.raises(SetupError, match='SafeCheckpointHook'):
        InterruptHook().before_train(runner)


def rank(number, tmp_path, dies):
    import torch.distributed as dist

    torch.set_num_threads(1)
    place = f'file://{tmp_path}/rendezvous'
    dist.init_process_group('gloo', init_method=place, rank=number, world_size=2)
    saver = Saver()
    runner = SimpleNamespace(
        hooks=[saver], logger=MMLogger.get_current_instance(), train_loop=None, val_loop=None
    )
    hook = InterruptHook()
    hook.before_train(runner)
    done = 0
    try:
        for i in range(10):
            if (i, number) == (3, 1):
                os.kill(os.getpid(), signal.SIGKILL if dies else signal.SIGTERM)
            done = i
            hook.after_train_iter(runner, i)
    except SystemExit as stop:
        text = f'{stop.code} {done} {saver.saved}'
    except RuntimeError as error:
        text = f'{error} {saver.saved}'
    (tmp_path / f'rank{number}').write_text(text)


def spawn(tmp_path, dies=False):
    start = time.monotonic()
    context = torch.multiprocessing.get_context('fork')
    processes = [context.Process(target=rank, args=(n, tmp_path, dies)) for n in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert time.monotonic() - start < 60


def test_ranks_exit_after_the_same_iteration(tmp_path):
    spawn(tmp_path)
    assert [(tmp_path / f'rank{n}').read_text() for n in (0, 1)] == ['75 3 1', '75 3 1']


def test_no_rank_saves_when_another_has_died(tmp_path):
    spawn(tmp_path, dies=True)
    text = (tmp_path / 'rank0').read_text()
    assert text.startswith('another rank has exited') and text.endswith(' 0')
    assert not (tmp_path / 'rank1').exists()


# Only the hook's file, since importing the package is slow.
IMPORTS = """
import sys, types
for name in ('', '.engine', '.engine.hooks'):
    module = sys.modules['package' + name] = types.ModuleType('package' + name)
    module.__path__ = [sys.argv[1] + name.replace('.', '/')]
from package.engine.hooks.interrupt import InterruptHook
"""
# A training loop over two workers.
LOOP = """
import time, torch
from types import SimpleNamespace
from torch.utils.data import DataLoader, Dataset
from mmengine.hooks import CheckpointHook
from mmengine.logging import MMLogger

class Slow(Dataset):
    def __len__(self):
        return 2000
    def __getitem__(self, i):
        time.sleep(0.01)
        return torch.zeros(2)

class Saver(CheckpointHook):
    def save_now(self, runner):
        next(batches)  # workers are alive
        print('saved', flush=True)

loader = DataLoader(Slow(), batch_size=4, num_workers=2, persistent_workers=True)
loop = SimpleNamespace(dataloader=loader)
runner = SimpleNamespace(hooks=[Saver()], logger=MMLogger.get_instance('x'), train_loop=loop,
                         val_loop=None)
hook = InterruptHook()
hook.before_train(runner)
batches = iter(loader)
for i, _ in enumerate(batches):
    if i == 5:
        print('running', *[w.pid for w in batches._workers], flush=True)
    hook.after_train_iter(runner, i)
print('finished', flush=True)
"""


def forked(out, err):
    os.setsid()
    for number, name, file in ((1, 'stdout', out), (2, 'stderr', err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
        setattr(sys, name, open(number, 'w'))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    exec(LOOP, dict(globals()))


def start(tmp_path, real=False):
    """Run LOOP in a new interpreter or a fork; return its pid, those of its workers, and `wait`."""
    out, err = tmp_path / 'out', tmp_path / 'err'
    if real:
        (tmp_path / 'script.py').write_text(IMPORTS + LOOP)
        command = [sys.executable, str(tmp_path / 'script.py'), str(ROOT / 'mcbeit_mm')]
        with out.open('w') as stdout, err.open('w') as stderr:
            process = subprocess.Popen(
                command, stdout=stdout, stderr=stderr, start_new_session=True
            )
        wait = process.wait
    else:
        process = torch.multiprocessing.get_context('fork').Process(target=forked, args=(out, err))
        process.start()

        def wait(timeout):
            process.join(timeout)
            return process.exitcode

    end = time.monotonic() + 60
    while not (out.exists() and out.read_text().endswith('\n')):
        assert time.monotonic() < end, err.read_text()
        time.sleep(0.01)
    words = out.read_text().split()
    assert words[0] == 'running'
    return process.pid, [int(pid) for pid in words[1:]], wait


@pytest.mark.parametrize('name, real', [('SIGTERM', False), ('SIGINT', True), ('SIGUSR1', False)])
def test_a_signal_to_the_process_group_ends_cleanly(tmp_path, name, real):
    pid, workers, wait = start(tmp_path, real)
    os.killpg(pid, signal.Signals[name])
    code = wait(60)
    out, err = ((tmp_path / name).read_text() for name in ('out', 'err'))
    assert code == 75, err
    assert out.count('saved\n') == 1 and 'rerun the same command with --resume' in out + err
    assert err.splitlines()[0].startswith(f'{name}: saving after this iteration')
    assert 'Traceback' not in err and 'Interrupt' not in err
    assert not any(os.path.exists(f'/proc/{worker}') for worker in workers)


def test_workers_end_with_a_killed_process(tmp_path):
    pid, workers, wait = start(tmp_path)
    os.kill(pid, signal.SIGKILL)
    wait(60)
    end = time.monotonic() + 30  # they check for their parent every 5 s
    while any(os.path.exists(f'/proc/{worker}') for worker in workers):
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_stuck_worker_can_be_ended_by_its_parent():
    loader = DataLoader(Slow(), num_workers=1)
    interrupt._shield_workers(loader)
    batches = iter(loader)
    next(batches)
    (worker,) = batches._workers
    subprocess.run(['kill', '-TERM', str(worker.pid)], check=True)
    next(batches)
    worker.join(timeout=0.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(timeout=20)
    assert worker.exitcode == 0
