"""Networks and measurements that Vessels is judged by."""
