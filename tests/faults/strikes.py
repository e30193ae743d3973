"""Plan faults and cause them."""

import os
import random
import signal
import time

import launcher
from run_state import VALIDATION, WRITING

SLOW_FSYNC = 0.15  # seconds; long enough to hit from outside
STOPPED = 0.3  # seconds between SIGSTOP and SIGKILL
OTHERS = ('SIGTERM', 'SIGINT', 'SIGSTOP, SIGKILL', 'abort', 'exception', 'SIGKILL of a worker',
          'torn write, SIGKILL')  # fmt: skip
SIGNALS = dict(SIGTERM=signal.SIGTERM, SIGINT=signal.SIGINT)


def make_plan(kills: int, rng: random.Random) -> list[tuple[str, str]]:
    """Return (fault, moment) pairs: `kills` times SIGKILL, each other fault kills / 10 times."""
    moments = ['iteration', 'file', 'seconds', 'validation', 'slow writing']
    plan = [(rng.choice(['SIGKILL', 'SIGKILL of the group']), moments[i % 5]) for i in range(kills)]
    for fault in OTHERS:
        plan += [(fault, '')] * max(1, kills // 10)
    rng.shuffle(plan)
    return plan


def order(
    fault: str, moment: str, reached: int, iters: int, validates: bool, rng: random.Random
) -> tuple[str, str, float]:
    """Return moment, MCBEIT_FAULT of the process, iteration that the harness waits for."""
    target = rng.randrange(reached, iters) + 1
    if fault in ('abort', 'exception') and rng.random() < 0.5 or moment == 'file':
        kind = fault if fault in ('abort', 'exception') else 'kill'
        return 'file', f'{kind}@file:{rng.randint(1, 12)}', 0
    if fault in ('abort', 'exception'):
        return 'iteration', f'{fault}@iter:{target}', 0
    if fault.startswith('torn'):
        return 'file', f'torn@file:{rng.randint(1, 12)}', 0
    moment = moment or rng.choice(['iteration', 'validation'])
    if moment == 'validation' and not validates:
        moment = 'iteration'
    return moment, '', target


def strike(running: launcher.Running, fault: str, moment: str, target: float, rng) -> dict:
    """Wait for the moment and cause the fault; return the state of the run just before."""
    end = time.monotonic() + launcher.TIMEOUT
    delay = rng.uniform(0, 0.05)
    while running.poll() is None and time.monotonic() < end:
        state = running.state.read()
        if moment == 'seconds':
            due, delay = time.monotonic() - running.started >= target, 0
        elif moment == 'slow writing':
            due = state['phase'] == WRITING and state['done'] >= target
            delay = rng.uniform(0, 4 * SLOW_FSYNC)
        elif moment == 'validation':
            due = state['phase'] == VALIDATION and state['done'] >= target
        else:
            due = state['done'] >= target - 1
        if due:
            break
        time.sleep(0.001)
    time.sleep(delay)
    state = running.state.read()
    if running.poll() is not None or time.monotonic() > end:
        return state
    if fault in SIGNALS:
        running.kill(SIGNALS[fault])
    elif fault == 'SIGKILL of a worker':
        for pid in running.workers()[:1]:
            os.kill(pid, signal.SIGKILL)
    else:
        if fault.startswith('SIGSTOP'):
            running.kill(signal.SIGSTOP)
            time.sleep(STOPPED)
        running.kill(signal.SIGKILL, group=fault == 'SIGKILL of the group')
    return state
