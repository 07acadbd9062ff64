"""Where an answer was lost: the error of every layer, accumulated and born there."""
