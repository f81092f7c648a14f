from client.selection.policies.fifo import Fifo as Improved
