# SPDX-License-Identifier: Apache-2.0
"""Differentiable search: one file for each method, over the shared files named below.

`relaxations` turns logits into weights, `alphas` puts them in force on a network, `mixers` are other ways to mix than
the weighted sum, `penalties` add a cost to a loss, `descent` takes the steps on weights and on alphas, `readout` turns
what was learned into an architecture, `diagnostics` tells how a search went.
"""
