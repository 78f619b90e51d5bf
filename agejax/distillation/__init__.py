"""Distillation (Hinton et al. 2015): trained networks, or files of their outputs, teach a new one.

setup          config.distill -> the teachers of a run, checked
teachers       what a train step needs of them: targets and loss terms
networks       runs and ensembles of agejax
onnx_models    models of other libraries
files          outputs computed before, matched to images by id
seen           whether a teacher has trained on images that its student is judged on
feature_map    the linear map from a student's features to its teacher's
"""
