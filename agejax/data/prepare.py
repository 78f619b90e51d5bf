"""python -m agejax.data.prepare --dataset=NAME --source=FILES [--beam=FLAG ...]

Prepares a data set for training: reads the downloaded files into records of encoded images and
labels, then decodes these. The first training does so too. With --beam the workers of an Apache
Beam pipeline write the records, on this machine or a cluster:

    python -m agejax.data.prepare --dataset=imdb_wiki --source=imdb_crop --beam=--runner=FlinkRunner

Both write the same records. All workers must see the source and the cache under the same paths.
From a folder each worker reads only its files, but an archive it reads completely: unpack a large
one first.

With --check nothing is prepared: everything that the cache holds of the data set is read and
compared with its checksums.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import importlib.util
import sys
from collections.abc import Sequence

from agejax.data import cache, flags
from agejax.errors import UserError
from agejax.process import usage
from agejax.process.command import run_command


def main(argv: Sequence[str]) -> None:
    parser = usage.parser(__doc__)
    flags.add_preparing(parser)
    parser.add_argument(
        "--beam", action="append", metavar="FLAG", help="of the pipeline, such as --beam=--runner=X"
    )
    parser.add_argument("--check", action="store_true", help="compare the cache with its checksums")
    args = parser.parse_args(argv[1:])
    if args.check:
        print(cache.check_all(args.dataset, args.cache_dir))
        return
    if args.beam is not None and importlib.util.find_spec("apache_beam") is None:
        raise UserError("--beam: Apache Beam is not installed; pip install -e '.[beam]'")
    source = flags.load(args, beam=args.beam)
    print(f"{source.name}: {len(source.ids):,} images are ready, fingerprint {source.fingerprint}")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
