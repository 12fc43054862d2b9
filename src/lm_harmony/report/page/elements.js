// Creation of elements. Text is always set through textContent, so that names are never interpreted as HTML.

const byId = (id) => document.getElementById(id);

const element = (tag, { text, ...properties } = {}, ...children) => {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) made.style.setProperty(name, value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
};

// A model's name in an element that isolates its writing direction from the surrounding text. A long name continues on the next
// line after a hyphen, underscore or slash; it is never cut.
const nameElement = (name) => {
  const slash = name.lastIndexOf("/") + 1;
  const made = element("bdi", { class: board.sameEnds.has(name) ? "name same-end" : "name" });
  if (slash) made.append(element("span", { class: "owner" }, ...breakable(name.slice(0, slash))));
  made.append(element("span", {}, ...breakable(name.slice(slash))));
  return made;
};

const breakable = (text) => text.split(/(?<=[-_/])/).flatMap((part, k) => (k ? [element("wbr"), part] : [part]));
