"""Pack a folder of images into a few tar files for random access, or index existing tar files.

python tools/pack_images.py FOLDER OUT [--shard-size MIB]
python tools/pack_images.py --index FOLDER_OF_TARS
"""

import argparse
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('folder', type=Path, help='images, or with --index uncompressed tar files')
    add('out', type=Path, nargs='?', help='missing or empty folder')
    add('--index', action='store_true', help='only index the tar files of FOLDER')
    add(
        '--shard-size',
        type=int,
        default=1024,
        metavar='MIB',
        help='size of a tar file (%(default)s)',
    )
    args = parser.parse_args()
    if args.index == (args.out is not None):
        parser.error('pass OUT, or --index without OUT')
    if args.shard_size < 1:
        parser.error('--shard-size must be 1 or more')
    return args


def main() -> None:
    args = parse_args()
    from mcbeit_mm.config import launch  # heavy imports after parsing: --help answers at once
    from mcbeit_mm.datasets import shards

    pack = args.out or args.folder
    with launch.one_line_errors(ValueError, OSError):
        if args.index:
            count = shards.index_tars(pack)
        else:
            count = shards.pack_images(args.folder, pack, args.shard_size * 2**20)
    print(f'{count:,} images: data_root={shards.PREFIX}{pack.resolve()}')


if __name__ == '__main__':
    main()
