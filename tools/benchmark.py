"""Compare this toolkit with plain implementations of the same work, side by side.

python tools/benchmark.py loss|tokenizer|step|data|downstream|import|all [--device cuda] [--quick]
"""

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

TOPICS = {name: name for name in ('loss', 'tokenizer', 'step', 'data', 'downstream')}
TOPICS['import'] = 'imports'  # topic -> module: import is a keyword


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('topic', choices=(*TOPICS, 'all'))
    parser.add_argument('--device', choices=('cpu', 'cuda'), help='default: cuda if available')
    parser.add_argument('--repeats', type=int, default=7, help='rounds of all sides; default 7')
    parser.add_argument('--threads', type=int, help="CPU threads; default torch's")
    parser.add_argument('--quick', action='store_true', help='tiny sizes, to see that it runs')
    parser.add_argument('--no-memory', action='store_true', help='skip peak memory')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write all figures')
    parser.add_argument('--markdown', type=Path, metavar='FILE', help='write the table')
    parser.add_argument('--child', nargs=2, metavar=('CASE', 'SIDE'), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error(f'--repeats is {args.repeats}, expected 1 or more')
    return args


def main() -> None:
    args = parse_args()
    import torch
    from benchmarks import measure, tables

    import mcbeit_mm  # noqa: F401  registers everything

    device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if device == 'cuda' and not torch.cuda.is_available():
        sys.exit('--device cuda: torch finds no CUDA device')
    if args.threads:
        torch.set_num_threads(args.threads)
    chosen = TOPICS if args.topic == 'all' else [args.topic]
    modules = {topic: import_module(f'benchmarks.{TOPICS[topic]}') for topic in chosen}
    if args.child:
        number, side = args.child
        case = modules[args.topic].cases(device, args.quick)[int(number)]
        once = case.build(side, device, **case.settings)
        print(json.dumps(measure.peak_memory(once, device)))
        return

    results, facts = run(modules, device, args)
    environment = measure.environment(device)
    markdown = tables.as_markdown(results, facts, environment)
    print(markdown, end='')
    if args.json:
        facts = [fact._asdict() for fact in facts]
        content = dict(environment=environment, results=results, facts=facts)
        args.json.write_text(json.dumps(content, indent=2) + '\n')
    if args.markdown:
        args.markdown.write_text(markdown)


def run(modules: dict, device: str, args: argparse.Namespace) -> tuple[list[dict], list]:
    """Results and facts of the topics."""
    from benchmarks import measure

    quick = args.quick
    results, facts, rates = [], [], {}
    for topic, module in modules.items():
        for number, case in enumerate(module.cases(device, quick)):
            print(f'{case.name} ...', file=sys.stderr, flush=True)
            if quick:  # too small for goals
                case = case._replace(goal=None, memory_goal=None)
            if case.computes and case.dtype not in rates:
                rates[case.dtype] = measure.matmul_rate(device, case.dtype)
            result = measure.measure(case, device, args.repeats, rates.get(case.dtype))
            if case.computes and not args.no_memory:
                for side, found in result['sides'].items():
                    found['peak'] = measure.peak_of_child(topic, number, side, device, quick)
            results.append(result)
        if hasattr(module, 'facts'):
            facts += module.facts(device, quick)
    for dtype, rate in rates.items():
        how = f'{dtype}, the faster of two sizes'
        facts.append(measure.Fact('matrix products', f'{rate / 1e12:.3g}', 'TFLOP/s', how))
    return results, facts


if __name__ == '__main__':
    main()
