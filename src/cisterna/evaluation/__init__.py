"""What a checkpoint answers and how it scores, and the baselines to compare it with.

- generate: what a model writes after each prompt, and the answers in it
- label_scores: the probability of each label after the model's own reasoning
- evaluate: answers and metrics of one checkpoint on the test splits of one task
- predict: answers to new sequences
- perplexity: base and CPT models on held-out parts of corpora
- baselines: majority, k-NN and logistic regression
"""
