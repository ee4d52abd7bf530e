"""Will it fit, how far is it, and where does it go on."""
from helpers.training.fit import PeakMemory, check_fit, plot_fit, resident_bytes
from helpers.training.live_plot import LossPlot, draw
from helpers.training.memory import estimate_memory
from helpers.training.resume import checkpoint_problem, last_complete_checkpoint, where_to_begin
from helpers.training.saving import keep_record, written_whole
from helpers.training.steps import learning_rates, log_and_save_steps, training_steps

__all__ = ["LossPlot", "PeakMemory", "check_fit", "checkpoint_problem", "draw", "estimate_memory", "keep_record", "last_complete_checkpoint",
           "learning_rates", "log_and_save_steps", "plot_fit", "resident_bytes", "training_steps", "where_to_begin", "written_whole"]
