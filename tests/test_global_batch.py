"""Networks whose layers see the global batch: several processes that share it compute what one does."""

import multiprocessing
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from torch import nn

from posepipe.backbones import build_backbone
from posepipe.global_batch import GlobalBatch, share
from posepipe.heads import HEADS
from posepipe.model_file import ModelConfig
from posepipe.models import build_model

ROWS = (5, 2)  # of three workers the last has one row and the others two; then the last has none


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(64, 3),
        nn.Dropout(0.2),
    ]
    return nn.Sequential(*layers).double()


def pixels(rows: int) -> torch.Tensor:
    # Far from zero and with parts that differ: sums of squares would lose digits, statistics of a part would be off.
    return torch.randn(rows, 3, 6, 6, generator=torch.Generator().manual_seed(1)).double() + 100 + 10 * torch.arange(rows).view(-1, 1, 1, 1)


def run(rank: int, world: int, rows: int, steps: int = 3) -> dict[str, Any]:
    """What a worker has after some steps: losses, running statistics and weights."""
    own = network()
    batch = GlobalBatch(rank, world)
    share(own, batch, torch.device("cpu"))
    model = nn.parallel.DistributedDataParallel(own) if world > 1 else own
    optimizer = torch.optim.SGD(own.parameters(), lr=0.01)
    losses = []
    for step in range(steps):
        batch.begin(rows, seed=step)
        loss = model(pixels(rows)[rank::world]).square().sum() / rows
        optimizer.zero_grad()
        (loss * world).backward()
        optimizer.step()
        total = loss.detach().clone()
        if world > 1:
            torch.distributed.all_reduce(total)
        losses.append(total.item())
    return {"losses": np.array(losses), **{name: tensor.numpy() for name, tensor in own.state_dict().items()}}


def run_rows(rank: int, world: int) -> list[dict[str, Any]]:
    return [run(rank, world, rows) for rows in ROWS]


def worker(function: Callable[[int, int], Any], rank: int, world: int, port: int, results: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    results.put(function(rank, world))
    torch.distributed.destroy_process_group()


def run_apart(function: Callable[[int, int], Any], world: int) -> list[Any]:
    """What `function(rank, world)` returns in each of `world` processes that run at once, in any order."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    processes = [context.Process(target=worker, args=(function, rank, world, port, results)) for rank in range(world)]
    for process in processes:
        process.start()
    found = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    return found


def test_three_workers_compute_what_one_does() -> None:
    for found in run_apart(run_rows, 3):
        for rows, shared in zip(ROWS, found, strict=True):
            for name, values in run(0, 1, rows).items():
                np.testing.assert_allclose(shared[name], values, rtol=1e-9, atol=1e-9, err_msg=name)


def test_dropout_masks_are_of_the_global_batch() -> None:
    masks = []
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        layers = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.25)).train()
        batch = GlobalBatch(rank, world)
        share(layers, batch, torch.device("cpu"))
        batch.begin(7, seed=3)
        masks.append(layers(torch.ones(len(range(rank, 7, world)), 50)))
    whole, even, odd = masks
    assert torch.equal(whole[0::2], even)
    assert torch.equal(whole[1::2], odd)
    assert whole.unique().tolist() == pytest.approx([0, 1 / 0.5 / 0.75])
    assert 0.2 < (whole > 0).float().mean() < 0.55
    assert torch.equal(layers.eval()(torch.ones(3, 50)), torch.ones(3, 50))


def test_dropout_of_nothing_draws_nothing_and_tokens_have_masks_of_their_own() -> None:
    none, half = nn.Dropout(0.0), nn.Dropout(0.5)
    batch = GlobalBatch(0, 2)
    share(nn.Sequential(none, half), batch, torch.device("cpu"))
    batch.begin(7, seed=3)
    before = batch._generator.get_state()
    values = torch.ones(4, 50)
    assert none(values) is values
    tokens = half(torch.ones(8, 2, 50))  # of 4 samples, 4 tokens of each
    assert tokens.unique().tolist() == [0, 2]
    assert torch.equal(batch._generator.get_state(), before)


def test_a_backbone_with_tokens_in_the_place_of_samples_is_trained() -> None:
    backbone = build_backbone("mobilevit_xxs", (64, 64), 32, False).network.train()
    batch = GlobalBatch(0, 1)
    share(backbone, batch, torch.device("cpu"))
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    batch.begin(2, seed=0)
    maps = backbone(torch.randn(2, 3, 64, 64))
    assert maps.shape[0] == 2


@pytest.mark.parametrize(
    ("model", "head"),
    [("deeppose", "paper"), ("resnetv2_50", "direct"), *(("resnet10t", head) for head in ("rle", "simcc", "heatmap", "unet"))],
)
def test_a_worker_without_a_row_has_gradients_of_zero(model: str, head: str) -> None:
    config = ModelConfig(
        task="pose",
        model=model,
        regression_head=head,
        feature_stride=32,
        size=(64, 64),
        framing="person",
        mean_points=[[0.5, 0.5]] * 16,
        samples_fingerprint="",
    )
    own = build_model(config).train()
    for module in own.modules():  # one process has no other to share statistics with
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    batch = GlobalBatch(1, 2)
    share(own, batch, torch.device("cpu"))
    batch.begin(1, seed=0)
    head_loss: Any = own.head
    assert head in HEADS
    loss, count = head_loss.loss(
        own(torch.empty(0, 3, 64, 64, dtype=torch.uint8)), torch.empty(0, 16, 2), torch.empty(0, 16, dtype=torch.bool)
    )
    loss.backward()
    assert (loss.item(), count.item()) == (0, 0)
    gradients = [parameter.grad for parameter in own.parameters() if parameter.requires_grad]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
