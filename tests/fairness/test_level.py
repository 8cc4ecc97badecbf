"""The lift of whoever comes back, where something hangs below it."""

from __future__ import annotations

from evenflow.fairness.policies.hierarchy import Tree


def test_a_branch_that_comes_back_just_as_it_could_be_forgotten_keeps_what_waits_below_it() -> None:
    tree = Tree(2, lambda name: (name[0], name), lambda path: 1.0)
    tree.join("x1")
    tree.hold("x1")
    bill = tree.open("x1", 1.0)
    tree.leave("x1")
    tree.join("z1")
    tree.finish(bill, 50.0)
    tree.release("x1")
    tree.check_integrity({"z1"}, {})
    tree.hold("z1")
    tree.bring(tree.open("z1", 1.0), 60.0, 0.0)
    tree.join("x1")
    tree.check_integrity({"x1", "z1"}, {"z1": 1})
