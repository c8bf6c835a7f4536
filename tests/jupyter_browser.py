"""aolab's kernel in JupyterLab, as a person sees it, in headless Chromium.

`python tests/jupyter_browser.py PATH/TO/aolab [SCREENSHOT.png]`: opens a notebook, runs all of it, waits until the
table, the figure and the model's tree stand there, opens the tree, and asks for completion.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import nbformat
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

CELLS = [
    "base = load tiny\nint4 = $base | quantize int4-weight-only --group-size 32",
    "compare $base $int4 --windows 8 --tokens 0",
    "plot bars --y perplexity",
    "$int4",
    "quan",
]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def browser():
    options = Options()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1300,1500"):
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium")
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def look(driver, url, picture):
    def until(what, wanted, seconds=120):
        return WebDriverWait(driver, seconds).until(wanted, what)

    def shown(selector):
        return lambda driver: driver.find_elements(By.CSS_SELECTOR, selector)

    driver.get(url)
    until("JupyterLab starts", lambda d: d.execute_script("return !!window.jupyterapp"))
    cells = shown(".jp-Notebook .jp-CodeCell .cm-content")
    until("the notebook is open", lambda driver: len(cells(driver)) == len(CELLS))
    until("the kernel is idle", shown(".jp-Notebook-ExecutionIndicator[data-status='idle']"))
    # JupyterLab forgets a command that comes before its panel is ready: it is asked again.
    for seconds in (20, 40, 120):
        driver.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        try:
            until("a table", shown(".jp-RenderedHTMLCommon table.aolab td"), seconds)
            break
        except TimeoutException:
            if seconds == 120:
                raise
    figure = until("a figure", shown(".jp-RenderedSVG img, .jp-RenderedSVG svg"))[0]
    assert figure.size["width"] > 200 and figure.size["height"] > 50, figure.size
    tree = until("a model's tree", shown("details.aolab-model"))[0]
    assert not tree.get_attribute("open")
    tree.find_element(By.TAG_NAME, "summary").click()
    assert tree.get_attribute("open") and "embed_tokens" in tree.text, tree.text
    error = until("the wrong line's error", shown("[data-mime-type='application/vnd.jupyter.stderr']"))
    assert "did you mean" in error[-1].text, error[-1].text
    # The last cell's editor: Tab completes the word that is not a command yet.
    editor = driver.find_elements(By.CSS_SELECTOR, ".jp-CodeCell .cm-content")[4]
    driver.execute_script("arguments[0].scrollIntoView()", editor)
    editor.click()
    editor.send_keys(Keys.END, Keys.TAB)
    until("completion", lambda d: editor.text.strip() == "quantize" or shown(".jp-Completer-item")(d))
    if picture:
        driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
        time.sleep(0.5)
        driver.save_screenshot(picture)


def main(aolab, picture):
    with tempfile.TemporaryDirectory() as home:
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "XDG_DATA_HOME"):
            os.environ[name] = os.path.join(home, name.lower())
        subprocess.run([aolab, "jupyter", "install"], check=True)
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in CELLS])
        notebook.metadata.kernelspec = {"name": "aolab", "display_name": "aolab", "language": "aolab"}
        work = os.path.join(home, "work")
        os.mkdir(work)
        nbformat.write(notebook, os.path.join(work, "look.ipynb"))
        port, token = free_port(), secrets.token_hex(16)
        lab = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0",
             f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={work}", "--LabApp.expose_app_in_browser=True"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        driver = browser()
        try:
            for _ in range(240):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.25)
            look(driver, f"http://127.0.0.1:{port}/lab/tree/look.ipynb?token={token}", picture)
        except Exception:
            if picture:
                driver.save_screenshot(picture)
            raise
        finally:
            driver.quit()
            lab.terminate()
            lab.wait(timeout=30)
    print("JupyterLab shows tables, figures and trees of aolab's kernel, and completes its words")


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
