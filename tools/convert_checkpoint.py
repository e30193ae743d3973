"""Convert a checkpoint of any known naming for this package, timm or Hugging Face.

python tools/convert_checkpoint.py SRC DST --to mcbeit|timm|hf [--label-order FILE] [--strip]
"""

import argparse


def parse_args() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add('src', metavar='SRC', help='checkpoint file, or folder of DeepSpeed or Hugging Face')
    add('dst', metavar='DST', help='.pth or .safetensors file; a folder for hf')
    add('--to', required=True, choices=('mcbeit', 'timm', 'hf'), help='naming to write')
    help = 'WordNet ids by class index of SRC; sorts the classes of DST by id'
    add('--label-order', metavar='FILE', help=help)
    add('--strip', action='store_true', help='leave out what only pretraining needs')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from mcbeit_mm.config.launch import one_line_errors
    from mcbeit_mm.weights.export import convert_file

    with one_line_errors(ValueError, FileNotFoundError):
        print(convert_file(args.src, args.dst, args.to, args.label_order, args.strip))


if __name__ == '__main__':
    main()
