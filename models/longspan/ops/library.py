"""The torch library ``longspan``: where every operator has its schema, whatever device its kernels are for."""

import torch

LIBRARY = torch.library.Library("longspan", "FRAGMENT")  # a module global: collected, it takes its operators with it
