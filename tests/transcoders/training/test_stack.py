"""The hand-written gradients against autograd on the loss as a paper would write it."""

from __future__ import annotations

import pytest
import torch

from interlatent_live.transcoders.config import Architecture, Target, TranscoderConfig
from interlatent_live.transcoders.training.recipe import Recipe
from interlatent_live.transcoders.training.stack import REVIVAL_SHARE, Stack

CPU = torch.device("cpu")
N = 32


def config_of(kind, *, skip=False, target=Target.OUTPUT, d_out=6):
    return TranscoderConfig(
        architecture=kind,
        d_in=5,
        d_out=5 if target is Target.INPUT else d_out,
        n_features=16,
        k=None if kind is Architecture.RELU else 3,
        l1=0.07 if kind is Architecture.RELU else None,
        widths=(2, 6, 16) if kind is Architecture.MATRYOSHKA else None,
        skip=skip,
        target=target,
    )


def selected(config, pre, theta):
    """Features of pre-activations [N, F] as the architecture trains them."""
    kind = config.architecture
    if kind is Architecture.RELU:
        return pre.relu()
    if kind is Architecture.JUMPRELU:
        return Jump.apply(pre, theta)
    if kind is Architecture.TOPK:
        top = torch.topk(pre, config.k)
        return torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    flat = torch.topk(pre.flatten(), config.k * len(pre))
    return torch.zeros_like(pre).flatten().scatter(0, flat.indices, flat.values.relu()).view_as(pre)


BANDWIDTH = 0.4


class Jump(torch.autograd.Function):
    """JumpReLU with the straight-through gradient of arXiv:2407.14435, eq. 11."""

    @staticmethod
    def forward(ctx, pre, theta):
        ctx.save_for_backward(pre, theta)
        return pre * (pre > theta)

    @staticmethod
    def backward(ctx, grad):
        pre, theta = ctx.saved_tensors
        near = ((pre - theta).abs() < BANDWIDTH / 2).float()
        return grad * (pre > theta), (-(theta / BANDWIDTH) * grad * near).sum(0, keepdim=True)


class Step(torch.autograd.Function):
    """Number of features on, with its straight-through gradient, eq. 12."""

    @staticmethod
    def forward(ctx, pre, theta):
        ctx.save_for_backward(pre, theta)
        return (pre > theta).float()

    @staticmethod
    def backward(ctx, grad):
        pre, theta = ctx.saved_tensors
        near = ((pre - theta).abs() < BANDWIDTH / 2).float()
        return None, (-(1 / BANDWIDTH) * grad * near).sum(0, keepdim=True)


def reference_loss(config, recipe, p, x, y, dead):
    pre = x @ p["W_enc"] + p["b_enc"]
    theta = p["log_threshold"].exp() if "log_threshold" in p else None
    features = selected(config, pre, theta)
    base = p["b_dec"] + (x @ p["W_skip"] if config.skip else 0)
    if config.architecture is Architecture.MATRYOSHKA:
        errors = [features[:, :w] @ p["W_dec"][:w] + base - y for w in config.widths]
        loss = sum(error.square().sum() / N for error in errors) / len(errors)
    else:
        errors = [features @ p["W_dec"] + base - y]
        loss = errors[0].square().sum() / N
    if config.architecture is Architecture.RELU:
        loss = loss + config.l1 * (features * p["W_dec"].norm(dim=1)).sum() / N
    if config.architecture is Architecture.JUMPRELU:
        l0 = Step.apply(pre.detach(), theta).sum() / N
        loss = loss + recipe.l0_weight * (l0 / config.k - 1) ** 2
    if dead.any() and recipe.aux_weight:
        rows = N // REVIVAL_SHARE
        error = errors[-1].detach()[:rows]
        aux_k = config.d_out // 2
        offered = (pre * dead)[:rows]
        top = torch.topk(offered.flatten(), min(aux_k, int(dead.sum())) * rows)
        revived = torch.zeros_like(offered).flatten()
        revived = revived.scatter(0, top.indices, top.values.relu()).view_as(offered)
        gap = revived @ p["W_dec"] + error
        loss = loss + recipe.aux_weight * gap.square().sum() / rows
    return loss


CASES = [
    *((kind, skip, Target.OUTPUT) for kind in Architecture for skip in (False, True)),
    (Architecture.BATCHTOPK, False, Target.INPUT),
]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dead_share", [0.0, 0.5])
@pytest.mark.parametrize(("kind", "skip", "target"), CASES)
def test_gradients_are_those_of_the_loss(kind, skip, target, dead_share, sparse):
    if sparse and kind not in (Architecture.TOPK, Architecture.BATCHTOPK):
        pytest.skip("only a bounded number of features on can be worked on sparsely")
    config = config_of(kind, skip=skip, target=target)
    recipe = Recipe(steps=10, batch=N, bandwidth=BANDWIDTH, l1_warmup=0.0, l0_weight=0.5)
    stack = Stack(config, [1, 2, 3], recipe, CPU)
    stack.sparse = sparse
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in stack.parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
        if "log_threshold" in stack.parameters:
            stack.parameters["log_threshold"].fill_(-0.5)
    x = torch.randn(3, N, 5, generator=generator)
    y = x if target is Target.INPUT else torch.randn(3, N, 6, generator=generator)
    sleeping = torch.rand(3, 16, generator=generator) < dead_share
    stack.since_fired[sleeping] = 1e6
    with torch.no_grad():
        for models in stack.chunks():
            stack.compute(models, x[models], y[models], 0, record=True)
    for model in range(3):
        own = {k: v[model].detach().clone().requires_grad_() for k, v in stack.parameters.items()}
        pre = x[model] @ own["W_enc"] + own["b_enc"]
        theta = own["log_threshold"].exp() if "log_threshold" in own else None
        fired = (selected(config, pre, theta) > 0).any(0)
        dead = sleeping[model] & ~fired
        reference_loss(config, recipe, own, x[model], y[model], dead).backward()
        for name, parameter in stack.parameters.items():
            assert parameter.grad is not None
            torch.testing.assert_close(
                parameter.grad[model], own[name].grad, rtol=2e-4, atol=2e-5, msg=f"{name} differs"
            )
        assert stack.stats.dead[model] == (stack.since_fired[model] > recipe.dead_window).sum()


@pytest.mark.parametrize("skip", [False, True])
def test_a_batch_with_nothing_on_moves_biases_and_skip_path_only(skip):
    stack = Stack(config_of(Architecture.BATCHTOPK, skip=skip), [1], Recipe(aux_weight=0), CPU)
    stack.sparse = True
    generator = torch.Generator().manual_seed(4)
    x, y = torch.randn(1, N, 5, generator=generator), torch.randn(1, N, 6, generator=generator)
    with torch.no_grad():
        stack.parameters["b_enc"].fill_(-100.0)
        stack.compute(slice(0, 1), x, y, 0, record=True)
    assert stack.stats.l0.tolist() == [0.0]
    assert not any(stack._gradient(name).any() for name in ("W_enc", "b_enc", "W_dec"))
    torch.testing.assert_close(stack._gradient("b_dec")[0, 0], -2 * y[0].mean(0))
    if skip:
        torch.testing.assert_close(stack._gradient("W_skip")[0], -2 / N * x[0].T @ y[0])


@pytest.mark.parametrize("sparse", [False, True])
def test_a_further_error_term_adds_its_gradient(sparse):
    config = config_of(Architecture.BATCHTOPK)
    stack = Stack(config, [1], Recipe(batch=N, aux_weight=0), CPU)
    stack.sparse = sparse
    generator = torch.Generator().manual_seed(4)
    x, y = torch.randn(1, N, 5, generator=generator), torch.randn(1, N, 6, generator=generator)
    metric = torch.randn(6, 6, generator=generator)
    metric = metric @ metric.T
    with torch.no_grad():
        stack.compute(slice(0, 1), x, y, 0, error_gradient=lambda e: 2 / N * e @ metric)
    own = {k: v[0].detach().clone().requires_grad_() for k, v in stack.parameters.items()}
    features = selected(config, x[0] @ own["W_enc"] + own["b_enc"], None)
    error = features @ own["W_dec"] + own["b_dec"] - y[0]
    ((error.square().sum() + ((error @ metric) * error).sum()) / N).backward()
    for name, parameter in stack.parameters.items():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad[0], own[name].grad, rtol=1e-4, atol=1e-5)


def test_models_do_not_touch_each_other():
    config = config_of(Architecture.BATCHTOPK)
    generator = torch.Generator().manual_seed(4)
    x, y = torch.randn(2, N, 5, generator=generator), torch.randn(2, N, 6, generator=generator)

    def trained(seeds, rows):
        stack = Stack(config, seeds, Recipe(steps=20, batch=N, dead_window=3), CPU)
        with torch.no_grad():
            for step in range(20):
                for models in stack.chunks():
                    stack.compute(models, x[rows][models], y[rows][models], step)
                stack.advance(step)
        return stack.parameters["W_dec"].detach()

    together = trained([5, 6], [0, 1])
    # Not to the bit: the optimiser's vector kernel rounds by position in the stack.
    torch.testing.assert_close(together[1], trained([6], [1])[0], rtol=1e-4, atol=1e-6)
    assert not torch.equal(together[0], together[1])


def test_autoencoders_start_tied():
    stack = Stack(config_of(Architecture.TOPK, target=Target.INPUT), [0], Recipe(), CPU)
    W_enc, W_dec = stack.parameters["W_enc"][0], stack.parameters["W_dec"][0]
    cosine = torch.nn.functional.cosine_similarity(W_enc.T, W_dec, dim=1)
    torch.testing.assert_close(cosine, torch.ones(16))


def test_the_support_is_worked_on_where_it_pays():
    def stack(kind, k, n_features):
        config = TranscoderConfig(architecture=kind, d_in=4, d_out=4, n_features=n_features, k=k)
        return Stack(config, [0], Recipe(), CPU)

    assert stack(Architecture.BATCHTOPK, 8, 1024).sparse
    assert stack(Architecture.TOPK, 8, 1024).sparse
    assert stack(Architecture.BATCHTOPK, 8, 256).sparse
    assert not stack(Architecture.BATCHTOPK, 32, 256).sparse
    assert not stack(Architecture.BATCHTOPK, 2, 64).sparse
    assert not stack(Architecture.JUMPRELU, 8, 1024).sparse
