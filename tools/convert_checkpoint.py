"""Write a checkpoint of any known naming for this package, timm or Hugging Face.

python tools/convert_checkpoint.py SRC DST --to mcbeit|timm|hf [--label-order FILE] [--strip]
"""

import argparse
from pathlib import Path


def parse_args() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add('src', metavar='SRC', help='checkpoint: a file, or a folder of DeepSpeed or Hugging Face')
    add('dst', metavar='DST', help='.pth or .safetensors file; for hf a folder')
    add('--to', required=True, choices=('mcbeit', 'timm', 'hf'), help='whose names to write')
    add(
        '--label-order',
        metavar='FILE',
        help='WordNet ids by class index of SRC; DST gets the classes by sorted id',
    )
    add('--strip', action='store_true', help='leave out what only pretraining needs')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from mcbeit_mm.config import launch  # after parsing: --help answers at once
    from mcbeit_mm.fileio.pins import split_pin
    from mcbeit_mm.weights.export import read_label_order, write
    from mcbeit_mm.weights.names import to_official
    from mcbeit_mm.weights.reading import read_checkpoint, state_dict_of

    with launch.one_line_errors(ValueError, FileNotFoundError):
        src, dst = Path(split_pin(args.src)[0]), Path(args.dst)
        if dst.resolve() in (src.resolve(), src.resolve().parent if args.to == 'hf' else None):
            raise ValueError(f'{dst} is the source itself: give another destination')
        if (args.to == 'hf') == (dst.suffix in ('.pth', '.pt', '.bin', '.safetensors')):
            wanted = 'a folder' if args.to == 'hf' else 'a .pth or .safetensors file'
            raise ValueError(f'--to {args.to} writes {wanted}, got {dst}')
        state = state_dict_of(read_checkpoint(args.src))
        labels = read_label_order(args.label_order) if args.label_order else None
        written = write(state, dst, args.to, labels, args.strip)
        source = to_official(state)
        print(f'{src}: {len(state)} tensors, {source.dialect} names, prefix {source.prefix!r}')
        if args.to != 'mcbeit' and source.rest:
            print(
                f'left out {len(source.rest)} outside of the transformer: {list(source.rest)[:5]}'
            )
        print(f'{dst}: {len(written)} tensors, {args.to} names')


if __name__ == '__main__':
    main()
