"""Publishing a checkpoint: one folder that transformers and PEFT load without Cisterna (`cisterna export`).

- export: what is in the folder, and in which order it is written
- tokenizer: a tokenizer that turns tagged sequences in plain text into residue tokens by itself
- merged: the whole weights of a lineage, in a dtype that keeps what was trained
- joined: the adapters of a lineage as one adapter, and the base that it belongs on
- card: README.md, the model card
- feature_model: a file that is copied into the folder of a model that reads features; it imports nothing of Cisterna
"""
