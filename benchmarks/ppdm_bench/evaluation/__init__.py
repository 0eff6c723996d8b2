"""Quality evaluation: candidates and cases, their scores, and the tables and pictures made from them."""
