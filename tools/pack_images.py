"""Pack a folder of images into a few tar files that are read by offset, or index tar and zip files.

python tools/pack_images.py FOLDER OUT [--shard-size MIB]
python tools/pack_images.py --index FOLDER_OF_ARCHIVES
"""

import argparse
import sys
from pathlib import Path

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp', '.gif')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path, help='images, or with --index tar and zip files')
    parser.add_argument('out', type=Path, nargs='?', help='missing or empty folder')
    parser.add_argument(
        '--index', action='store_true', help='only index the tar and zip files of FOLDER'
    )
    parser.add_argument(
        '--shard-size', type=int, default=1024, metavar='MIB', help='of a tar file; default 1024'
    )
    args = parser.parse_args()
    if args.index == (args.out is not None):
        parser.error('give OUT, or --index without OUT')
    if args.shard_size < 1:
        parser.error(f'--shard-size is {args.shard_size}, expected 1 or more')
    return args


def main() -> None:
    args = parse_args()
    from mcbeit_mm.config import launch
    from mcbeit_mm.datasets import packing, shards

    with launch.one_line_errors(ValueError, OSError):
        if args.index:
            count, pack = packing.index_archives(args.folder), args.folder
        else:
            if not args.folder.is_dir():
                raise FileNotFoundError(f'no folder {args.folder}')
            args.out.mkdir(parents=True, exist_ok=True)
            if (args.out / shards.INDEX).exists() or any(
                path.suffix != '.tar' for path in args.out.iterdir()
            ):
                raise FileExistsError(f'{args.out} holds other files: choose an empty folder')
            for leftover in args.out.glob('*.tar'):  # of a run that did not finish
                leftover.unlink()
            files = sorted(p for p in args.folder.rglob('*') if p.suffix.lower() in EXTENSIONS)
            images = ((file.relative_to(args.folder).as_posix(), file) for file in files)
            count, pack = packing.pack_folder(images, args.out, args.shard_size * 2**20), args.out
    print(f'{count:,} images: data_root={shards.PREFIX}{pack.resolve()}')


if __name__ == '__main__':
    sys.exit(main())
