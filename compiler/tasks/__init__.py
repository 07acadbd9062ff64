"""What an answer is worth in the task's own terms: classes, boxes, masks, tokens."""
