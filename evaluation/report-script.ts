/**
 * The report's only script: sorts and filters tables, names the value under the pointer, copies the command. Everything is
 * readable without it. It reads the page and changes its order; it fetches nothing.
 */
export const REPORT_SCRIPT = `'use strict';
document.documentElement.classList.add('js');

for (const table of document.querySelectorAll('table.sortable')) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener('click', () => {
      const down = head.getAttribute('aria-sort') === 'ascending';
      for (const other of table.tHead.rows[0].cells) other.removeAttribute('aria-sort');
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      const key = (row) => {
        const cell = row.cells[column];
        return cell.dataset.v === undefined ? cell.textContent : cell.dataset.v === '' ? null : Number(cell.dataset.v);
      };
      const rows = [...body.rows].map((row, i) => ({ row, i, key: key(row) }));
      rows.sort((a, b) => {
        if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.i - b.i;
        const order = typeof a.key === 'number' ? a.key - b.key : a.key.localeCompare(b.key, 'en', { numeric: true });
        return (down ? -order : order) || a.i - b.i;
      });
      body.append(...rows.map(({ row }) => row));
    });
  });
}

for (const input of document.querySelectorAll('[data-filter]')) {
  const rows = [...document.getElementById(input.dataset.filter).tBodies[0].rows];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const count = document.querySelector('[data-count="' + input.dataset.filter + '"]');
  const apply = () => {
    const words = input.value.toLowerCase().split(/\\s+/);
    let shown = 0;
    rows.forEach((row, i) => {
      row.hidden = !words.every((word) => texts[i].includes(word));
      if (!row.hidden) shown++;
    });
    count.textContent = shown === rows.length ? '' : shown + ' of ' + rows.length;
  };
  input.addEventListener('input', apply);
  apply();
}

for (const button of document.querySelectorAll('[data-copy]')) {
  button.addEventListener('click', () => {
    const source = document.getElementById(button.dataset.copy);
    getSelection().selectAllChildren(source);
    const done = () => { button.textContent = 'Copied'; };
    if (navigator.clipboard) navigator.clipboard.writeText(source.textContent).then(done, () => {});
  });
}

for (const figure of document.querySelectorAll('figure.network')) {
  const svg = figure.querySelector('#network');
  const readout = figure.querySelector('.readout');
  const points = [...svg.querySelectorAll('.point')].map((mark) => ({
    mark,
    x: parseFloat(mark.getAttribute('x')) / 100,
    y: parseFloat(mark.getAttribute('y')) / 100,
    text: mark.querySelector('title').textContent,
    box: figure.querySelector('#show-' + mark.getAttribute('href').slice(3)),
  }));
  const ring = svg.querySelector('.pointer');
  svg.addEventListener('pointermove', (event) => {
    const area = svg.getBoundingClientRect();
    let best;
    let least = Infinity;
    for (const point of points) {
      if (!point.box.checked) continue;
      const distance = (point.x * area.width - event.clientX + area.left) ** 2 + (point.y * area.height - event.clientY + area.top) ** 2;
      if (distance < least) [best, least] = [point, distance];
    }
    if (!best) return;
    readout.textContent = best.text;
    ring.setAttribute('x', best.x * 100 + '%');
    ring.setAttribute('y', best.y * 100 + '%');
    ring.classList.add('on');
  });
}

for (const figure of document.querySelectorAll('figure[data-readout]')) {
  const readout = figure.querySelector('.readout');
  const tell = (event) => {
    const title = event.target.closest('a')?.querySelector('title');
    if (title) readout.textContent = title.textContent;
  };
  figure.addEventListener('pointerover', tell);
  figure.addEventListener('focusin', tell);
}
`;
