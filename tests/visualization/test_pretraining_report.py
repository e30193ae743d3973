"""Numbers in the sections of a pretraining run."""

import numpy as np
import pytest
from fake_logs import features, scalars
from html_page import Page

from mcbeit_mm.visualization import pretraining_report as report
from mcbeit_mm.visualization.page import render
from mcbeit_mm.visualization.targets import TokenizerScores


def page_of(section):
    return Page(render('x', [section]))


def test_accuracies_are_those_of_the_chosen_blocks_with_the_gain():
    page = page_of(report.features_section(features()))
    rows = [
        ('k-NN, best block', '31.2 % (block 0)', '13.0 % (block 1)', '+18.2'),
        ('linear probe, best block', '41.0 % (block 0)', '12.0 % (block 0)', '+29.0'),
    ]
    found = '|'.join(text for text in page.texts if text.strip())
    for row in rows:
        assert '|'.join(row) in found
    text = ' '.join(page.text.split())
    assert 'Chance is 10.0 %; one image is 1.2 %.' in text and len(page.pictures) == 1


def test_accuracies_without_random_weights_have_no_gain():
    scores = features()
    del scores['models']['random init']
    page = page_of(report.features_section(scores))
    assert 'gain' not in page.texts and '31.2 % (block 0)' in page.texts
    with pytest.raises(ValueError, match="no model 'checkpoint'"):
        report.features_section(dict(scores, models={}))


def test_facts_add_up_the_time_of_all_steps():
    log = [dict(entry, step=10 * entry['step']) for entry in scalars()]
    log.insert(2, dict(step=25, knn_top1=3.0))  # logged between training steps
    page = page_of(report.facts_section({'config': 'a.py'}, log))
    assert '2.0 min' in page.texts  # 40 steps of 3 s
    assert '42 images/s' in page.texts and '25 % of the time' in page.texts
    assert '40' in page.texts and 'a.py' in page.texts


def test_tokenizer_section_states_its_numbers():
    counts = np.array([30, 10, 0, 0])
    scores = TokenizerScores(counts, np.zeros((4, 2, 2, 3), np.uint8), 5, 21.55)
    page = page_of(report.tokenizer_section(scores, scalars()))
    for text in ('4', '50.0 %', '1.8', '75.0 % of the patches', '21.6 dB'):
        assert text in page.texts
    assert len(page.pictures) == 1
    blind = TokenizerScores(counts, scores.mean_patches, 5, None)
    page = page_of(report.tokenizer_section(blind))
    assert not page.pictures and 'dB' not in page.text
    assert len(page_of(report.codebook_section(scores)).pictures) == 1 + 2


def test_a_log_without_curves_is_refused():
    with pytest.raises(ValueError, match='has none of loss'):
        report.curves_section([dict(step=1, time=1.0)])
