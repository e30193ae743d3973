"""k-NN, linear probe and features against slow references."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mcbeit_mm.backbone import MCBEiTViT
from mcbeit_mm.evaluation import features as evaluation

ARCH = dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64)
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def clusters(num, num_classes=4, dims=12, spread=1.5, seed=0):
    """Overlapping Gaussian classes with scales that differ between dimensions."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(size=(num_classes, dims))
    labels = rng.integers(num_classes, size=num)
    feats = centers[labels] + spread * rng.normal(size=(num, dims))
    feats = feats * np.linspace(0.1, 3, dims) + 1
    return torch.tensor(feats, dtype=torch.float32), torch.tensor(labels)


def write_folder(root, classes=('blue', 'red'), num=6, size=(40, 52)):
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(num):
                image = rng.integers(0, 120, (*size, 3), dtype=np.uint8)
                image[..., label % 3] += 100
                Image.fromarray(image).save(folder / f'{i}.png')
    return root


# --- k-NN ---------------------------------------------------------------------------------------


def slow_knn(train, train_labels, test, test_labels, k, temperature):
    train, test = train.double().numpy(), test.double().numpy()
    correct = 0
    for feat, label in zip(test, test_labels.tolist(), strict=True):
        cosine = [feat @ x / np.linalg.norm(feat) / np.linalg.norm(x) for x in train]
        votes = np.zeros(int(train_labels.max()) + 1)
        for i in np.argsort(cosine)[::-1][:k]:
            votes[train_labels[i]] += np.exp(cosine[i] / temperature)
        correct += votes.argmax() == label
    return 100 * correct / len(test)


@pytest.mark.parametrize('k, temperature', [(1, 0.07), (5, 0.07), (20, 0.07), (150, 1.0)])
def test_knn_equals_the_slow_reference_in_pieces(monkeypatch, k, temperature):
    data = (*clusters(150), *clusters(61, seed=1))
    expected = slow_knn(*data, k, temperature)
    assert 30 < expected < 95  # neither chance (25 %) nor trivial
    assert evaluation.knn_accuracy(*data, k, temperature) == pytest.approx(expected, abs=1e-9)
    monkeypatch.setattr(evaluation, 'MAX_ELEMENTS', 7 * 150)
    assert evaluation.knn_accuracy(*data, k, temperature) == pytest.approx(expected, abs=1e-9)


def test_knn_weights_near_neighbors_more():
    angles = torch.tensor([0.05, 0.6, 0.6])
    train = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[3.0], [1.0], [9.0]])
    data = (train, torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert evaluation.knn_accuracy(*data, k=3, temperature=0.07) == 100.0
    assert evaluation.knn_accuracy(*data, k=3, temperature=10.0) == 0.0


@pytest.mark.parametrize('k', [0, 21])
def test_knn_refuses_impossible_k(k):
    data = clusters(20)
    with pytest.raises(ValueError, match=rf'k must be in \[1, 20\].*got {k}'):
        evaluation.knn_accuracy(*data, *data, k=k)


# --- linear probe -------------------------------------------------------------------------------


def sklearn_fit(feats, labels, strength):
    sklearn = pytest.importorskip('sklearn.linear_model')
    model = sklearn.LogisticRegression(C=1 / (strength * len(feats)), tol=1e-10, max_iter=10000)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return model.fit(feats.double().numpy(), labels.numpy())


@pytest.mark.parametrize('strength', [1.0, 1e-2, 1e-4])
def test_fit_logistic_equals_sklearn(monkeypatch, strength):
    feats, labels = clusters(300)
    feats = (feats - feats.mean(0)) / feats.std(0, correction=0)
    theirs = sklearn_fit(feats, labels, strength)
    monkeypatch.setattr(evaluation, 'MAX_ELEMENTS', 4 * 77)  # gradients from four pieces
    ours = evaluation.fit_logistic(feats, labels, 4, strength)
    weight = ours.weight.detach().double()
    # Measured: weights within 3.4e-4 (they reach 1.7), probabilities within 2.6e-4.
    torch.testing.assert_close(weight, torch.tensor(theirs.coef_), rtol=0, atol=1e-3)
    probs = ours(feats).softmax(1).detach().double()
    expected = torch.tensor(theirs.predict_proba(feats.double().numpy()))
    torch.testing.assert_close(probs, expected, rtol=0, atol=1e-3)


def test_linear_probe_equals_sklearn_with_the_same_protocol():
    pytest.importorskip('sklearn')
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = clusters(200, dims=40, spread=2.5), clusters(400, dims=40, spread=2.5, seed=1)
    fit, held_out = evaluation.held_out_split(train[1])

    def accuracy(strength, fit_data, test_data):
        scaler = StandardScaler().fit(fit_data[0].double().numpy())
        scaled = torch.tensor(scaler.transform(fit_data[0].double().numpy()))
        model = make_pipeline(scaler, sklearn_fit(scaled, fit_data[1], strength))
        return 100 * model.score(test_data[0].double().numpy(), test_data[1].numpy())

    parts = [(train[0][i], train[1][i]) for i in (fit, held_out)]
    held_out_scores = [accuracy(s, *parts) for s in evaluation.STRENGTHS]
    best = int(np.argmax(held_out_scores))
    expected = accuracy(evaluation.STRENGTHS[best], train, test)
    assert max(held_out_scores) > min(held_out_scores)  # the choice matters
    score, held_out_score, strength = evaluation.linear_probe(*train, *test)
    assert strength == evaluation.STRENGTHS[best]
    assert held_out_score == pytest.approx(held_out_scores[best], abs=1e-9)
    assert score == pytest.approx(expected, abs=0.26)  # one of 400 images
    assert 40 < score < 95


def test_linear_probe_never_chooses_by_the_test_set():
    train, test = clusters(120), clusters(80, seed=1)
    result = evaluation.linear_probe(*train, *test)
    other = evaluation.linear_probe(*train, test[0].flip(0), test[1])
    assert result[1:] == other[1:]
    assert result[0] > other[0]
    assert evaluation.linear_probe(*train, *test) == result


def test_held_out_split_is_a_tenth_of_every_class():
    labels = torch.arange(5).repeat_interleave(40)
    fit, held_out = evaluation.held_out_split(labels)
    assert torch.equal(torch.cat([fit, held_out]).sort().values, torch.arange(200))
    assert labels[held_out].bincount().tolist() == [4] * 5
    with pytest.raises(ValueError, match='10 or more training images, got 9'):
        evaluation.held_out_split(labels[:9])


def test_score_layers_finds_the_informative_block():
    (good, labels), (good_test, test_labels) = (
        clusters(150, spread=0.3),
        clusters(50, 4, 12, 0.3, 1),
    )
    noise, noise_test = torch.randn(200, 12, generator=torch.Generator().manual_seed(0)).split(
        [150, 50]
    )
    train = dict(feats=torch.stack([noise, good]), labels=labels)
    test = dict(feats=torch.stack([noise_test, good_test]), labels=test_labels)
    first, second = evaluation.score_layers(train, test, k=10, device='cpu')
    for method in ('knn', 'linear'):
        assert first[method] < 50 < 95 < second[method]
        assert first[f'{method}_held_out'] < 60 < 90 < second[f'{method}_held_out']
    assert second['knn'] == evaluation.knn_accuracy(good, labels, good_test, test_labels, k=10)


# --- features -----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp('images'))


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    model = MCBEiTViT(ARCH, img_size=32, patch_size=8, drop_path_rate=0.5, out_indices=-1)
    for param in model.parameters():  # every part, position bias and norms too, must matter
        nn.init.normal_(param, std=0.2)
    return model


def loader_of(folder, img_size=32):
    train, _ = evaluation.folder_datasets(folder, img_size, MEAN, STD)
    return evaluation.ordered_loader(train, batch_size=5, num_workers=0)


def test_features_of_all_blocks_equal_separate_forwards(folder, backbone):
    loader = loader_of(folder)
    images = torch.cat([batch['inputs'] for batch in loader])
    result = evaluation.extract_features(backbone, loader, 'cpu')
    assert result['feats'].shape == (3, 12, 32)
    assert result['labels'].tolist() == [0] * 6 + [1] * 6
    backbone.eval()
    for layer in range(3):
        backbone.out_indices = (layer,)
        with torch.no_grad():
            expected = backbone(images)[0][:, 1:].mean(1)
        torch.testing.assert_close(result['feats'][layer], expected, rtol=1e-5, atol=1e-5)
        one = evaluation.extract_features(backbone, loader, 'cpu', [layer - 3])
        assert torch.equal(one['feats'][0], result['feats'][layer])
    backbone.norm = nn.Identity()
    unnormed = evaluation.extract_features(backbone, loader, 'cpu')['feats']
    assert torch.equal(unnormed[:2], result['feats'][:2])
    assert not torch.allclose(unnormed[2], result['feats'][2])


def test_extraction_leaves_the_backbone_as_it_was(folder, backbone):
    backbone.train()
    backbone.blocks[0].eval()
    modes = [module.training for module in backbone.modules()]
    evaluation.extract_features(backbone, loader_of(folder), 'cpu')
    assert [module.training for module in backbone.modules()] == modes
    assert backbone.out_indices == (2,)
    with pytest.raises(ValueError, match='33x33 pixels'):
        evaluation.extract_features(backbone, loader_of(folder, img_size=33), 'cpu')
    assert [module.training for module in backbone.modules()] == modes
    assert backbone.out_indices == (2,)


def test_bf16_features_are_close_and_fp32(folder, backbone):
    loader = loader_of(folder)
    exact = evaluation.extract_features(backbone, loader, 'cpu')['feats']
    rounded = evaluation.extract_features(backbone, loader, 'cpu', bf16=True)['feats']
    assert rounded.dtype == torch.float32
    error = (rounded - exact).norm() / exact.norm()
    assert 1e-5 < error < 2e-2  # bf16 keeps 8 bits: 4e-3 per operation


def test_extraction_errors(folder, backbone):
    with pytest.raises(ValueError, match=r'layers \[3\] are not among the 3 blocks, 0 to 2'):
        evaluation.extract_features(backbone, loader_of(folder), 'cpu', [0, 3])
    pooled = MCBEiTViT(ARCH, img_size=32, patch_size=8, out_type='avg_featmap')
    with pytest.raises(ValueError, match="out_type='raw', got 'avg_featmap'"):
        evaluation.extract_features(pooled, loader_of(folder), 'cpu')


# --- image folders ------------------------------------------------------------------------------


@pytest.mark.parametrize('img_size', [28, (14, 28)])
def test_images_equal_pillow(folder, img_size):
    _, val = evaluation.folder_datasets(folder, img_size, MEAN, STD)
    image = Image.open(folder / 'val' / 'red' / '2.png').resize((int(32 * 52 / 40), 32), 3)
    height, width = (28, 28) if img_size == 28 else img_size
    left, top = round((image.width - width) / 2), (32 - height) // 2
    crop = np.asarray(image.crop((left, top, left + width, top + height)), dtype=np.float64)
    expected = (crop - MEAN) / STD
    sample = val[6 + 2]
    np.testing.assert_allclose(sample['inputs'].numpy().transpose(1, 2, 0), expected, atol=1e-5)
    assert sample['data_samples'].gt_label.item() == 1


def test_max_train_takes_images_of_all_classes(tmp_path):
    write_folder(tmp_path, classes=('a', 'b', 'c'), num=4)
    train, val = evaluation.folder_datasets(tmp_path, 28, MEAN, STD, max_train=6)
    labels = [train.get_data_info(i)['gt_label'] for i in range(len(train))]
    assert np.bincount(labels).tolist() == [2, 2, 2]
    assert len(val) == 12


def test_folder_errors(tmp_path):
    folder = write_folder(tmp_path / 'images')
    with pytest.raises(FileNotFoundError, match='nowhere/train'):
        evaluation.folder_datasets(tmp_path / 'nowhere', 28, MEAN, STD)
    (folder / 'val' / 'blue').rename(folder / 'val' / 'azure')
    with pytest.raises(ValueError, match=r"differ in the class folders \['azure', 'blue'\]"):
        evaluation.folder_datasets(folder, 28, MEAN, STD)
    for path in (folder / 'train').rglob('*.png'):
        path.unlink()
    with pytest.raises(ValueError, match='no images in the class folders of .*train'):
        evaluation.folder_datasets(folder, 28, MEAN, STD)
