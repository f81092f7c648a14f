"""Train `seedling`, the built-in chat model: corpora, tokenizer, data, optimisation, evaluation, export."""
