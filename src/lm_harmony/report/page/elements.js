// Elements are made here and nowhere else. Text always goes through textContent: a name is never read as markup.

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

// A name of any script and direction keeps to its own place: its direction is its own, isolated from what stands around it.
const nameElement = (name) => {
  const slash = name.lastIndexOf("/") + 1;
  const made = element("bdi", { class: "name", title: name });
  if (slash) made.append(element("span", { class: "owner", text: name.slice(0, slash) }));
  made.append(element("span", { text: name.slice(slash) }));
  return made;
};
