from __future__ import annotations

import copy

import torch

from continual.learning.teacher import Beginning, Teacher
from loss.crossentropy import CrossEntropy
from networks.unet import UNet
from tests.continual.learning.test_learner import TASKS, fit, make_learner


def network():
    torch.manual_seed(0)
    made = UNet(width=4, num_layers=3, bilinear=True)
    made.add_classes(3)
    return made


def test_a_teacher_is_a_frozen_copy():
    learning, image = network(), torch.rand(1, 3, 16, 16)
    teacher = Teacher()
    assert teacher(image) is None
    teacher.to(torch.device("cpu"))  # has nothing to move
    teacher.learn_from(learning)
    assert learning.training
    assert all(p.requires_grad for p in learning.parameters())
    before = teacher(image).logits
    assert torch.equal(before, copy.deepcopy(learning).eval()(image).logits)
    assert not before.requires_grad
    learning(image).logits.sum().backward()
    torch.optim.SGD(learning.parameters(), 0.1).step()
    assert torch.equal(teacher(image).logits, before)
    assert not torch.equal(learning.eval()(image).logits, before)
    teacher.leave()
    assert teacher(image) is None


def test_teacher_is_the_frozen_previous_network_outside_the_module_tree():
    learner = make_learner()
    learner.begin_task(TASKS[0])
    assert learner.teacher.network is None
    before = copy.deepcopy(learner.network).eval()
    learner.begin_task(TASKS[1])
    assert not any("teacher" in key for key in learner.state_dict())
    assert not any(p.requires_grad for p in learner.teacher.network.parameters())
    assert not learner.teacher.network.training
    image = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(learner.teacher(image).logits, before(image).logits, rtol=0, atol=0)
    fit(learner)
    torch.testing.assert_close(learner.teacher(image).logits, before(image).logits, rtol=0, atol=0)
    assert not learner.teacher.network.training


def test_teacher_runs_only_if_the_loss_asks():
    learner = make_learner(CrossEntropy())
    learner.begin_task(TASKS[0])
    learner.begin_task(TASKS[1])
    assert learner.teacher.network is None
    fit(learner)


def test_a_beginning_gives_the_first_weights_and_all_classes_so_far():
    torch.manual_seed(0)
    first = UNet(width=4, num_layers=3, bilinear=True)
    beginning, weights = Beginning(first), copy.deepcopy(first.state_dict())
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.fill_(7)
    for _ in range(2):
        begun = beginning.network([3, 0], TASKS[1])  # the second task brought a domain and no class
        assert all(torch.equal(begun.state_dict()[name], value) for name, value in weights.items())
        assert begun.classifier.sizes == [3, 1]
        with torch.no_grad():
            for parameter in begun.parameters():
                parameter.fill_(7)
