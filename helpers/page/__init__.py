"""Things on a page."""
from helpers.page.explorers import before_and_after, explore
from helpers.page.lesson import check_lesson
from helpers.page.pictures import Picture, show_plot
from helpers.page.report import write_report

__all__ = ["Picture", "before_and_after", "check_lesson", "explore", "show_plot", "write_report"]
