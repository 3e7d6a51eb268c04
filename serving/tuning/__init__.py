"""`slipway tune`: the settings of a model that are measured to be best for a latency bound.

`setting` says what is varied, `trial` measures one setting, `search` chooses which to measure, and
`report` shows what came of it.
"""
