"""The paper's ablation on rendered scenes."""
