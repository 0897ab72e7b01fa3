"""Predicates, rules, claims, verification, writers and the narrator, all without sockets."""
