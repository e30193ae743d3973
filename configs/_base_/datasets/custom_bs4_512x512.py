"""Your own photos and masks in ADE20K's layout, 512-px crops.

MCBEIT_DATA has images/{training,validation}/NAME.jpg, annotations/{training,validation}/NAME.png
and classes.txt, the only place that defines the classes. A mask value k > 0 is the k-th line of
classes.txt; 0 and 255 are neither learned nor scored.
"""

import os.path as osp

_base_ = './ade20k_bs2_512x512.py'

data_root = '{{$MCBEIT_DATA:data/custom}}'
classes_file = f'{data_root}/classes.txt'
num_classes = len(open(classes_file).readlines()) if osp.isfile(classes_file) else 2

custom = dict(type='BaseSegDataset', data_root=data_root, metainfo=dict(classes=classes_file))
train_dataloader = dict(batch_size=4, dataset=custom)
val_dataloader = dict(dataset=custom)
test_dataloader = val_dataloader
