"""What a checkpoint answers and how it scores, and the baselines to compare it with.

- generate: what a model writes after each prompt, the answers in it, and the probability of each label
- evaluate: answers and metrics of one checkpoint on the test splits of one task
- scores: the metrics of a table of predictions, of the whole and of each group
- predict: answers to new sequences
- perplexity: base and CPT models on held-out parts of corpora
- features, baselines: what majority, k-NN, logistic regression and gradient boosting read, and what they answer
"""
