"""A transformers model over the flat tokens of many rows.

What goes into a forward goes in as arguments, down to the model's own call. Inside it transformers passes nothing of
ours along, so four values are left where the code that needs them finds them; these are all, and each is put back or
used up within the call:

- the active cache, by thread (`caches.attention.attending`): a layer's attention is called with its tensors alone. The
  config's attention implementation is switched with it.
- what is to be done with the last hidden states (`HeadRunner._keep`): a hook before the last matrix finds it.
- the compiled calls of layers (`HeadRunner._active`): set while a packed forward runs, so that other callers of the
  model do not run them.
- parts of a merged product (`merging._Shared.parts`): q_proj computes those of k_proj and v_proj, which are called
  after it.
"""
