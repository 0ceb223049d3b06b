"""raw MPII -> samples"""

import json

from posepipe import config
from posepipe.config import PrepareConfig


def main() -> None:
    settings = config.parse(PrepareConfig)
    from posepipe import cluster, preparing

    with config.user_errors():
        if settings.dry_run:
            print(json.dumps(preparing.inventory(settings), indent=1))
            return
        cluster.connect()
        print(preparing.describe(preparing.prepare(settings), settings.samples_uri))


if __name__ == "__main__":
    main()
