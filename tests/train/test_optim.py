from toy import toy_config

from tips_ray.train.optim import parameter_groups
from tips_ray.train.state import new_state


def test_only_matrices_decay():
    student = new_state(toy_config()).student
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    decayed, spared = ({names[id(p)] for p in group["params"]} for group in parameter_groups(student, 0.04))
    assert decayed | spared == set(names.values()) and not decayed & spared
    for name in spared:
        assert name.endswith((".bias", ".gamma", "_token", "_tokens", "pos_embed", "log_temperature")) or "norm" in name
    for name in decayed:
        assert name.endswith((".weight", ".prototypes")) and "norm" not in name
