"""From raw images and captions to training rows."""
