"""Drive a real JupyterLab in a real browser: start the server, open a notebook, run it, look at what a learner sees."""
from __future__ import annotations

import json
import secrets
import time
from contextlib import contextmanager
from pathlib import Path

from helpers.tools.processes import free_port, started, wait_until_ready

SETTINGS = {  # of JupyterLab: every cell stays in the page, and nothing is asked of the network
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
WIDGET_FAILURES = ["Error displaying widget", "Error creating widget", "Loading widget...", "Failed to load model class"]
PROMPTS = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.textContent)"
KERNEL_READY = """() => {
    const session = window.jupyterapp?.shell.currentWidget?.sessionContext;
    return Boolean(session?.isReady && session.session?.kernel?.status === "idle");
}"""
COUNT_PICTURES = """() => {  // notes every picture of the live plot that the page shows, and its height in every frame
    window.plots = new Set(); window.heights = new Set();
    const look = () => {
        const plot = [...document.querySelectorAll('svg[aria-label^="Loss and learning rate"]')].pop();
        if (plot) { window.plots.add(plot); }
        if (plot || window.plots.size) { window.heights.add(plot ? Math.round(plot.getBoundingClientRect().height) : 0); }
        requestAnimationFrame(look);
    };
    look();
}"""

WATCH = """area => {  // notes when a key is pressed, and every change since then in what an explorer shows
    window.keyAt = 0; window.changesAt = [];
    document.addEventListener('keydown', () => { window.keyAt = performance.now(); window.changesAt = []; }, true);
    const inside = change => change.target.closest?.('.jp-OutputArea .jp-OutputArea');
    new MutationObserver(changes => { if (changes.some(inside)) { window.changesAt.push(performance.now()); } })
        .observe(area, {subtree: true, childList: true});
}"""


@contextmanager
def jupyter_lab(course: Path, settings: Path):
    """Run JupyterLab on a free port with its own settings; yield its address."""
    for name, value in SETTINGS.items():
        file = settings / "lab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))
    port = free_port()
    token = secrets.token_hex(16)
    own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython",
           "JUPYTERLAB_SETTINGS_DIR": "lab", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "JUPYTER_DATA_DIR": "data"}
    environment = {name: str(settings / folder) for name, folder in own.items()}
    words = ["jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser", f"--ServerApp.root_dir={course}",
             f"--ServerApp.port={port}", f"--IdentityProvider.token={token}"]
    log = settings / "server.log"
    with log.open("w") as file, started(*words, folder=course, output=file, **environment) as server:
        wait_until_ready(server, f"http://127.0.0.1:{port}/api", log, 60)
        yield lambda path: f"http://127.0.0.1:{port}/lab/tree/{path}?token={token}&reset"


def wait(condition, seconds: float, what: str):
    """Return the first true value of condition()."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.1)
    raise TimeoutError(f"waited {seconds:.0f} s for {what}")


class Notebook:
    """One notebook, open in a page of the browser."""

    def __init__(self, page, address: str) -> None:
        self.page = page
        page.goto(address)
        page.wait_for_selector(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell", timeout=60_000)
        wait(lambda: page.evaluate(KERNEL_READY), 60, "the kernel")

    def command(self, name: str, **arguments) -> None:
        """Start a command of JupyterLab; not wait for its end."""
        self.page.evaluate("([name, arguments]) => { window.jupyterapp.commands.execute(name, arguments); }",
                           [name, arguments])

    def run_all(self) -> float:
        """Run every cell as the menu does; return the seconds it took."""
        start = time.monotonic()
        self.command("notebook:run-all-cells")
        wait(lambda: any("*" in prompt for prompt in self.prompts()) or self.errors(), 30, "the first cell to start")
        self.wait_until_idle(900)
        return time.monotonic() - start

    def wait_until_idle(self, seconds: float) -> None:
        wait(lambda: not any("*" in prompt for prompt in self.prompts()), seconds, "the cells to end")

    def prompts(self) -> list[str]:
        """Return what stands beside the code cells: "[*]:" while one waits or runs, then its number."""
        return self.page.evaluate(PROMPTS)

    def errors(self) -> list[str]:
        """Return what a learner would see go wrong: tracebacks, also inside of widgets, and widgets that do not show."""
        seen = self.page.locator('[data-mime-type="application/vnd.jupyter.error"]')
        broken = [text for text in WIDGET_FAILURES if self.page.get_by_text(text).count()]
        return [text[-1500:] for text in seen.all_inner_texts() if text.strip()] + broken

    def too_wide(self) -> list[str]:
        """Return the beginning of each output that a learner would have to scroll sideways."""
        wide = """outputs => outputs.filter(output => output.scrollWidth > output.clientWidth + 2)
                                    .map(output => output.innerText.slice(0, 80))"""
        return self.page.locator(".jp-OutputArea-output").evaluate_all(wide)

    def explorers(self):
        """Return the output areas that hold something to move, type or press."""
        controls = ", ".join(f".jupyter-widgets {kind}" for kind in ("[role=slider]", "input", "select", "textarea", "button"))
        return self.page.locator(".jp-CodeCell > .jp-Cell-outputWrapper").filter(has=self.page.locator(controls)).all()

    def picture(self, place, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        place.evaluate("place => place.scrollIntoView({block: 'start'})")
        self.page.wait_for_timeout(400)
        place.screenshot(path=file)

    def theme(self, name: str) -> None:
        self.command("apputils:change-theme", theme=name)
        self.page.wait_for_selector(f'body[data-jp-theme-name="{name}"]', state="attached", timeout=20_000)
