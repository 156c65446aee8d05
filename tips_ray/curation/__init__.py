"""From raw pairs to a training set: signals of every row, what is kept and why, the selection and its lock."""
