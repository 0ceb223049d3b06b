"""The same training run on 1, 2 and 4 workers, and on one worker whose two threads add in another order: do their losses agree?

    python -m benchmarks.world_size --samples-uri samples --weights A.pt B.pt

One epoch of a ResNet-18 each, with BatchNorm, augmentation and a last batch that is not full. Prints a table.
"""

import argparse
import tempfile

from posepipe import cluster, storage, training, watching
from posepipe.config import TrainConfig

RUNS = {"1 worker": (1, 1), "1 worker, 2 threads": (1, 2), "2 workers": (2, 1), "4 workers": (4, 1)}
STEPS = (1, 2, 5, 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples-uri", required=True)
    parser.add_argument("--weights", nargs="+", default=["none"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    flags = parser.parse_args()
    # Workers share the cores that there are.
    cluster.start(num_cpus=6, logging_level="ERROR")
    cluster.connect()
    titles = [f"loss of step {step}" for step in STEPS] + ["train loss", "val loss", "PCKh@0.5", "val people"]
    rows = []
    with tempfile.TemporaryDirectory() as runs_uri:
        for index, (title, (workers, cpus)) in enumerate(RUNS.items()):
            config = TrainConfig(
                samples_uri=flags.samples_uri,
                runs_uri=runs_uri,
                name=f"run{index}",
                model="resnet18",
                regression_head="heatmap",
                feature_stride=16,
                weights=tuple(flags.weights),
                batch_size=flags.batch_size,
                learning_rate=flags.learning_rate,
                epochs=1,
                augment=True,
                num_workers=workers,
                cpus_per_worker=cpus,
            )
            training.train(config)
            (row,) = storage.read_json(f"{runs_uri}/{config.name}/history.json")
            losses = [loss for _, loss in watching.read_events(f"{runs_uri}/{config.name}")["step/loss"]]
            values = [f"{losses[step - 1]:.6f}" for step in STEPS]
            values += [f"{row['train_loss']:.5f}", f"{row['val_loss']:.5f}", f"{100 * row['val_pckh']:.2f}", f"{row['val_num_people']}"]
            rows.append([title, *values])
    for line in (["", *titles], ["---"] * (1 + len(titles)), *rows):
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
