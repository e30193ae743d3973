"""Compare this toolkit with plain implementations of the same work, side by side.

python tools/benchmark.py loss|tokenizer|step|data|downstream|all [--device cuda] [--quick]
"""

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

TOPICS = ('loss', 'tokenizer', 'step', 'data', 'downstream')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('topic', choices=(*TOPICS, 'all'))
    parser.add_argument('--device', choices=('cpu', 'cuda'), help='default: cuda if available')
    parser.add_argument('--repeats', type=int, default=7, help='rounds of all sides; default 7')
    parser.add_argument('--quick', action='store_true', help='tiny sizes, as a smoke test')
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
    from benchmarks import measure

    import mcbeit_mm  # noqa: F401  registers everything

    device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if device == 'cuda' and not torch.cuda.is_available():
        sys.exit('--device cuda: torch finds no CUDA device')
    topics = TOPICS if args.topic == 'all' else [args.topic]
    modules = {topic: import_module(f'benchmarks.{topic}') for topic in topics}
    cases = {topic: module.cases(device, args.quick) for topic, module in modules.items()}
    if args.child:
        number, side = args.child
        case = cases[args.topic][int(number)]
        once = case.build(side, device, **case.settings)
        print(json.dumps(measure.peak_memory(once, device)))
        return

    results, rates = measure.run(cases, device, args.quick, args.repeats)
    environment = measure.environment(device) | rates
    markdown = measure.as_markdown(results, environment)
    print(markdown, end='')
    if args.json:
        content = dict(environment=environment, results=results)
        args.json.write_text(json.dumps(content, indent=2) + '\n')
    if args.markdown:
        args.markdown.write_text(markdown)


if __name__ == '__main__':
    main()
