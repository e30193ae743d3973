"""Files of two classes that share a name give two images."""

import torch
from mmengine.visualization import Visualizer
from mmpretrain.structures import DataSample
from mmpretrain.visualization import UniversalVisualizer

from mcbeit_mm.engine.hooks import ClassPicturesHook


def test_equal_file_names_do_not_overwrite_each_other(tmp_path):
    Visualizer._instance_dict.clear()
    UniversalVisualizer.get_instance('pictures')
    hook = ClassPicturesHook(enable=True, interval=1, out_dir=str(tmp_path))
    samples = []
    for folder in ('cat', 'dog'):
        sample = DataSample(metainfo=dict(img_path=f'/data/val/{folder}/001.jpg'))
        samples.append(sample.set_pred_score(torch.tensor([0.2, 0.8])).set_gt_label(1))
    batch = dict(inputs=[torch.zeros(3, 64, 64) for _ in samples])
    hook.after_test_iter(None, 0, batch, samples)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['cat_001.jpg_0.png', 'dog_001.jpg_0.png']
    assert samples[0].img_path == '/data/val/cat/001.jpg'
    Visualizer._instance_dict.clear()
