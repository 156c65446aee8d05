"""Embeds whole data sets with a frozen encoder and writes each row once, as Parquet."""
