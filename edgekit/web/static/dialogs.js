// Orders ask back: a submit button with data-dialog opens the question, whose own button submits.

export function openDialogs() {
  document.addEventListener("click", (event) => {
    const opener = event.target.closest("[data-dialog]");
    if (opener !== null) {
      const form = opener.form;
      event.preventDefault();
      if (!form.reportValidity()) return;
      const dialog = document.getElementById(opener.dataset.dialog);
      for (const echo of dialog.querySelectorAll("[data-echo]")) {
        echo.textContent = form.elements[echo.dataset.echo].value;
      }
      dialog.showModal();
      return;
    }
    event.target.closest("[data-close]")?.closest("dialog").close();
  });
}
