// All runs: ticked ones get a colour in the chart and go into the command that compares them; a search hides the others.
(() => {
  const rows = [...document.querySelectorAll("table.index tbody tr")];
  const few = rows.length <= 6;
  const find = (id) => document.getElementById(id);
  const command = find("compare"), note = find("compare-note"), legend = find("ticked"), untick = find("untick");
  const series = new Map([...document.querySelectorAll(".index-chart .series")].map((curve) => [curve.dataset.trial, curve]));
  const box = (row) => row.querySelector("input");
  const colours = new Map();  // of ticked runs: each keeps its colour until it is unticked
  const colourOf = (row) => {
    if (few) return `s${Number(row.dataset.trial) + 1}`;
    if (!colours.has(row)) {
      const uses = [1, 2, 3, 4, 5, 6].map((number) => [...colours.values()].filter((colour) => colour === `s${number}`).length);
      colours.set(row, `s${uses.indexOf(Math.min(...uses)) + 1}`);
    }
    return colours.get(row);
  };

  let ticked = [];  // in the order of the ticks: the command compares the second run with the first

  const update = () => {
    ticked = [...ticked.filter((row) => box(row).checked), ...rows.filter((row) => box(row).checked && !ticked.includes(row))];
    for (const row of rows) {
      const on = box(row).checked, curve = series.get(row.dataset.trial);
      if (!on) colours.delete(row);
      const style = on || few ? colourOf(row) : "faint";
      row.cells[0].dataset.v = on ? "0" : "";  // ticked runs come first when the column is sorted
      row.querySelector(".swatch").className = `swatch ${style}`;
      curve?.setAttribute("class", `series ${style}${on ? " ticked" : ""}`);
      if (on) curve?.parentNode.append(curve);
    }
    if (legend && !few) {
      legend.replaceChildren(...ticked.map((row) => {
        const entry = document.createElement("li");
        entry.className = `key ${colourOf(row)}`;
        entry.textContent = row.dataset.name;
        return entry;
      }));
    }
    untick.hidden = !ticked.length;
    const dataset = ticked.find((row) => row.dataset.comparable)?.dataset.comparable;
    const compared = ticked.filter((row) => row.dataset.comparable && row.dataset.comparable === dataset);
    const leftOut = ticked.length - compared.length;
    const text = ["cifar10-accel compare", ...compared.map((row) => row.dataset.path)].join(" ");
    command.hidden = compared.length < 2;
    command.querySelector("code").textContent = text;
    command.querySelector("button").dataset.copy = text;
    note.textContent = !ticked.length ? "Tick two finished runs of one data set to get the command that compares them."
      : `${ticked.length} ticked` + (leftOut ? `; ${leftOut} left out: no predictions yet, or another data set than the first` : "")
        + (compared.length < 2 ? "; two runs to compare are needed." : ":");
  };

  for (const row of rows) box(row).addEventListener("change", update);
  for (const [number, curve] of series) {
    curve.addEventListener("click", () => { box(rows[Number(number)]).click(); });
  }
  untick.addEventListener("click", () => { rows.forEach((row) => { box(row).checked = false; }); update(); });
  const search = find("search");
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase(), fits = words.every((word) => text.includes(word));
      row.hidden = !fits;
      series.get(row.dataset.trial)?.toggleAttribute("hidden", !fits);
      shown += fits;
    }
    find("found").textContent = `${shown.toLocaleString("en")} shown`;
  });
  update();  // a browser may keep the ticks when it loads the page again
})();
