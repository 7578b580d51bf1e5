"""Training: one module a stage (`cpt`, `sft`, `rl`), and what they share (`run`). No stage imports another stage."""
