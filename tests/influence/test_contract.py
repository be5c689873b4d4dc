"""The contract of every curvature on every problem: the numbers of the loops, and the laws that any scores obey."""

import cases
import numpy as np
import pytest
import torch
import upweight
from methods import MAIN_PAIRS, METHODS, ONE_EACH, PAIRS, assert_scores, pair_name, truth
from numpy.testing import assert_allclose, assert_array_equal

METHOD_ON_CASE = pytest.mark.parametrize(("method", "case"), PAIRS, ids=pair_name)
MAIN_METHOD_ON_CASE = pytest.mark.parametrize(("method", "case"), MAIN_PAIRS, ids=pair_name)
EACH_METHOD = pytest.mark.parametrize(("method", "case"), ONE_EACH, ids=pair_name)

EXACT = 1e-8  # the project's bound in float64; conditions up to 1e6 leave it wide
SINGLE = 1e-4  # the project's bound in float32
SAME = 1e-9  # the same sums in another order; rounding grows with the condition here too


def attribute(problem, method, case, **options):
    options = {"curvature": method.build(case), "parameters": problem.parameters, **options}
    return upweight.attribute(problem.model, problem.train, problem.queries, **options)


class TestNumbers:
    @METHOD_ON_CASE
    def test_float64_scores_are_those_of_the_loops(self, method, case):
        scores = attribute(case.build(), method, case)
        assert scores.matrix.dtype == np.float64
        assert_scores(scores.matrix, truth(method, case), EXACT)

    @MAIN_METHOD_ON_CASE
    def test_float32_scores_are_those_of_the_loops(self, method, case):
        scores = attribute(case.build(dtype=torch.float32), method, case)
        assert scores.matrix.dtype == np.float32
        assert_scores(scores.matrix, truth(method, case, torch.float32), SINGLE)

    @MAIN_METHOD_ON_CASE
    def test_train_on_itself_is_exact_and_symmetric(self, method, case):
        problem = case.build()
        scores = upweight.attribute(
            problem.model, problem.train, parameters=problem.parameters, curvature=method.build(case)
        )
        want = truth(method, case, on_itself=True)
        assert_scores(scores.matrix, want, EXACT)
        largest = np.sqrt(np.outer(abs(want).max(1), abs(want).max(0)))
        assert (abs(scores.matrix - scores.matrix.T) <= EXACT * largest).all()

    @EACH_METHOD
    def test_another_seed_is_another_problem_with_the_same_answer(self, method, case):
        problem = case.build(seed=5)
        other = cases.Case(name=f"{case.name}-again", make=lambda g: problem, head=case.head, damping=case.damping)
        assert_scores(attribute(problem, method, other).matrix, truth(method, other), EXACT)

    @EACH_METHOD
    def test_wider_type_than_the_models_is_honoured(self, method, case):
        scores = attribute(case.build(dtype=torch.float32), method, case, dtype=torch.float64)
        assert scores.matrix.dtype == np.float64
        assert_scores(scores.matrix, truth(method, case, torch.float32), EXACT)


class TestLaws:
    @MAIN_METHOD_ON_CASE
    def test_batch_size_changes_nothing(self, method, case):
        """8 leaves a shorter last batch in nearly every problem, where the default holds all of it at once."""
        assert_scores(attribute(case.build(), method, case, batch_size=8).matrix, truth(method, case), EXACT)

    @EACH_METHOD
    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_batch_size_changes_nothing_but_rounding(self, method, case, batch_size):
        got = attribute(case.build(), method, case, batch_size=batch_size).matrix
        assert_scores(got, attribute(case.build(), method, case).matrix, SAME)

    @EACH_METHOD
    def test_permuted_train_set_permutes_columns(self, method, case):
        problem = case.build()
        order = torch.randperm(problem.n, generator=torch.Generator().manual_seed(0))
        X, y = problem.train
        got = upweight.attribute(
            problem.model, (X[order], y[order]), problem.queries,
            parameters=problem.parameters, curvature=method.build(case),
        ).matrix  # fmt: skip
        assert_scores(got, attribute(problem, method, case).matrix[:, order.numpy()], SAME)

    @EACH_METHOD
    def test_permuted_queries_permute_rows(self, method, case):
        problem = case.build()
        order = torch.randperm(problem.m, generator=torch.Generator().manual_seed(0))
        X, y = problem.queries
        got = upweight.attribute(
            problem.model, problem.train, (X[order], y[order]),
            parameters=problem.parameters, curvature=method.build(case),
        ).matrix  # fmt: skip
        assert_scores(got, attribute(problem, method, case).matrix[order.numpy()], SAME)

    @EACH_METHOD
    def test_a_query_is_scored_as_if_it_were_alone(self, method, case):
        problem = case.build()
        X, y = problem.queries
        alone = upweight.attribute(
            problem.model, problem.train, (X[2:3], y[2:3]),
            parameters=problem.parameters, curvature=method.build(case),
        ).matrix  # fmt: skip
        assert_scores(alone, attribute(problem, method, case).matrix[2:3], SAME)

    @EACH_METHOD
    def test_a_dataset_is_read_like_tensors(self, method, case):
        problem = case.build()

        def dataset(pair):
            return [(x, int(y)) for x, y in zip(*pair, strict=True)]

        got = upweight.attribute(
            problem.model, dataset(problem.train), dataset(problem.queries),
            parameters=problem.parameters, curvature=method.build(case),
        ).matrix  # fmt: skip
        assert_scores(got, attribute(problem, method, case).matrix, SAME)

    @EACH_METHOD
    def test_predicted_label_is_the_loss_at_the_prediction(self, method, case):
        problem = case.build()
        scores = attribute(problem, method, case, query_label="predicted")
        predicted = torch.from_numpy(scores.queries.prediction)
        assert (predicted != problem.queries[1]).any()  # else this could not fail
        relabelled = upweight.attribute(
            problem.model, problem.train, (problem.queries[0], predicted),
            parameters=problem.parameters, curvature=method.build(case),
        ).matrix  # fmt: skip
        assert_scores(scores.matrix, relabelled, SAME)
        assert_array_equal(scores.queries.label, problem.queries[1])  # what is kept is the true label all the same

    @EACH_METHOD
    def test_self_stays_in_the_matrix_and_out_of_rankings(self, method, case):
        problem = case.build()
        scores = attribute(problem, method, case, train_scores=True)
        itself = scores.on_train
        assert itself is not None and itself.on_itself and not scores.on_itself
        assert_scores(itself.matrix, truth(method, case, on_itself=True), EXACT)
        assert_scores(scores.matrix, truth(method, case), EXACT)
        assert_array_equal(scores.self_influence(), np.diag(itself.matrix))
        assert (np.diag(itself.matrix) > 0).all() or method.name == "Hessian"  # g H^+ g > 0 unless H is indefinite
        for query in (0, problem.n - 1):
            for ranking in (itself.top(query, k=problem.n), itself.bottom(query, k=problem.n)):
                assert sorted(ranking["train_id"]) == [i for i in range(problem.n) if i != query]


class TestManners:
    """What the caller handed over is handed back."""

    @EACH_METHOD
    def test_model_is_left_as_it_was_found(self, method, case):
        problem = case.build()
        model = problem.model
        modules = list(model.modules())
        parameters = list(model.parameters())
        modules[-1].eval()
        parameters[0].requires_grad_(False)
        for parameter in parameters[1:]:
            parameter.grad = torch.ones_like(parameter)
        model.register_forward_hook(lambda *_: None)

        def found():
            return {
                "modes": [module.training for module in model.modules()],
                "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
                "hooks": [
                    (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
                    for module in model.modules()
                ],
                "identity": [id(parameter) for parameter in model.parameters()],
            }

        before, weights = found(), {name: value.clone() for name, value in model.state_dict().items()}
        grads = [parameter.grad for parameter in parameters]
        inputs = [value.clone() for value in (*problem.train, *problem.queries)]
        generator = torch.get_rng_state()
        attribute(problem, method, case)
        assert found() == before
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        assert all(parameter.grad is grad for parameter, grad in zip(parameters, grads, strict=True))
        assert all(grad is None or bool((grad == 1).all()) for grad in grads)
        assert all(torch.equal(a, b) for a, b in zip((*problem.train, *problem.queries), inputs, strict=True))
        assert torch.equal(torch.get_rng_state(), generator)

    def test_model_is_left_as_it_was_found_after_a_failure(self):
        problem = cases.BY_NAME["image-head"].build()
        X, y = problem.train
        y = y.clone()
        y[-1] = 17
        with pytest.raises(upweight.UpweightError):
            upweight.attribute(problem.model, (X, y), problem.queries)
        assert all(module.training for module in problem.model.modules())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in problem.model.modules())

    @EACH_METHOD
    def test_frozen_weights_and_no_grad_change_nothing(self, method, case):
        """A fine-tuned model arrives with its body frozen, and often inside torch.no_grad()."""
        problem = case.build()
        want = attribute(problem, method, case).matrix
        problem.model.requires_grad_(False)
        with torch.no_grad():
            assert_scores(attribute(problem, method, case).matrix, want, SAME)

    @EACH_METHOD
    def test_scores_say_how_they_were_made(self, method, case):
        scores = attribute(case.build(), method, case, weight_decay=0.25)
        assert scores.meta["curvature"]["name"] == type(method.build(case)).__name__
        assert scores.meta["query_label"] == "true"
        assert scores.meta["weight_decay"] == pytest.approx(0.25)
        dot = method.name.startswith("GradientDot")  # no curvature
        along = dot and "checkpoints" in scores.meta["curvature"]  # without them no loss that rises by score / n
        product = "sum over checkpoints of rate g_query^T " if along else "g_query^T " if dot else "g_query^T H^+ "
        assert scores.meta["sign"].startswith(f"+ {product}g_train; positive = helpful")
        assert ("score / n" in scores.meta["sign"]) == (along or not dot)
        assert (scores.meta["unit"] == "nats per unit weight") == (along or not dot)
        assert (scores.spectrum is None) == dot


class TestWhatIsKept:
    """Labels, predictions, losses, residuals and features of both sides, beside the scores."""

    @pytest.mark.parametrize("case", cases.CASES, ids=pair_name)
    def test_examples_are_those_of_the_loops(self, case):
        import reference

        problem = case.build()
        scores = upweight.attribute(
            problem.model, problem.train, problem.queries,
            parameters=problem.parameters, curvature=upweight.GradientDot(),
        )  # fmt: skip
        for kept, (X, y) in ((scores.train, problem.train), (scores.queries, problem.queries)):
            z = reference.all_logits(problem, X)
            assert_array_equal(kept.index, np.arange(len(y)))
            assert_array_equal(kept.label, y)
            assert_array_equal(kept.prediction, z.argmax(1))
            losses = [reference.loss(row, int(label)) for row, label in zip(z, y, strict=True)]
            assert_allclose(kept.loss, losses, rtol=1e-10)
            residuals = [reference.residual(row, int(label)) for row, label in zip(z, y, strict=True)]
            assert_allclose(kept.residual, residuals, rtol=1e-10)  # also where it is 1e-18
            if not isinstance(problem.model, cases.TiedNetwork):
                assert_allclose(kept.features, cases.features(problem, X), rtol=1e-12, atol=1e-14)


@pytest.mark.gpu
class TestGPU:
    @EACH_METHOD
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
    def test_cuda_agrees_with_cpu(self, method, case, dtype):
        if method.double and dtype == torch.float32:
            pytest.skip("asks for more digits than float32 has")
        problem = case.build(dtype=dtype)
        on_cpu = attribute(problem, method, case, device="cpu").matrix
        on_gpu = attribute(problem, method, case, device="cuda").matrix
        # 1e-4 of the largest score of a column: float32 sums in another order (and no TF32); float64 is tighter
        assert_scores(on_gpu, on_cpu, SINGLE if dtype == torch.float32 else EXACT)
        assert all(parameter.device.type == "cpu" for parameter in problem.model.parameters())

    @EACH_METHOD
    def test_model_and_data_on_the_gpu_are_taken_as_they_are(self, method, case):
        problem = case.build()
        want = attribute(problem, method, case, device="cpu").matrix
        moved = problem.to("cuda")
        got = attribute(moved, method, case, device="cuda").matrix
        assert isinstance(got, np.ndarray)
        assert_scores(got, want, EXACT)


def test_every_method_meets_every_case_it_can():
    full = [m for m in METHODS if not m.skip]
    assert len(PAIRS) >= sum(len(cases.HEAD_CASES) if m.head_only else len(cases.CASES) for m in full)
    assert {type(m.build(cases.CASES[0])).__name__ for m in full if m.main} == {
        "LinearHead", "Hessian", "GradientDot", "GaussNewton", "EKFAC", "Nystroem",
    }  # fmt: skip
