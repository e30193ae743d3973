"""Your own photos and instances in COCO's layout, moderate jitter to 320 x 320 pixels.

MCBEIT_DATA has train2017, val2017 and annotations/instances_{train,val}2017.json. The classes are
the categories of the training file.
"""

import json
import os.path as osp

_base_ = './coco_lsj_bs2_mcbeit.py'

image_size = (320, 320)
ann_file = f'{_base_.data_root}/annotations/instances_train2017.json'
categories = json.load(open(ann_file))['categories'] if osp.isfile(ann_file) else [dict(name='?')]
classes = [category['name'] for category in categories]
num_classes = len(classes)

train_pipeline = _base_.train_pipeline
train_pipeline[2].update(scale=image_size, ratio_range=(0.8, 1.5))  # our choice
train_pipeline[3].update(crop_size=image_size)
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=image_size)
custom = dict(metainfo=dict(classes=classes))
train_dataloader = dict(
    batch_size=4, num_workers=2, dataset=dict(pipeline=train_pipeline, **custom)
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **custom))
test_dataloader = val_dataloader
