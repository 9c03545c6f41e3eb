"""The evaluate stage: draw the test recordings, classify what they show, and say where the loss is.

Systems, from the whole to its parts: `speech` (the pipeline), `tokens-probe` (what the tokens hold),
`truth-to-decoder` (the decoder fed with the true attributes in a plain written sentence), `tokenizer` (the real
picture through the codes), `shuffled` (each recording's tokens given to another: a control at chance level).
Beside them the pipelines that go through words: `cascade` (what the CTC head read, written) and `cascade-perfect`
(the true caption, written). Conditions disturb the recordings of one split, or speak them anew.

`judge`, `space` and `systems` measure corpora without attributes: labels and captions are enough.

The ranks of a launch encode and draw whole batches in turn; each gathers them all and computes the metrics itself.
"""
