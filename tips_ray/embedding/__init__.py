"""Embeddings of whole data sets by a frozen encoder, in Parquet, each row once."""
